package circuit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"flag"
	"testing"

	"weft/crypto/identity"
	"weft/test/corpus"
)

var update = flag.Bool("update", false, "write testdata/fuzz anew")

func FuzzParseProof(f *testing.F) {
	fixed := func(n byte) identity.Key { return must(identity.ParseKey(bytes.Repeat([]byte{n}, identity.KeySize))) }
	root, node := fixed(1), fixed(2)
	cert := must(identity.Found(root, node, "n1", day))
	leaf := must(x509.ParseCertificate(must(present(node, root.Public(), cert)).Certificate[0]))
	for _, e := range leaf.Extensions {
		if e.Id.Equal(proofOID) {
			corpus.Add(f, *update, "founder", e.Value)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		root, cert, err := parseProof(b)
		if err == nil && (len(root) != ed25519.PublicKeySize || cert == nil) {
			t.Fatal("half a proof")
		}
	})
}
