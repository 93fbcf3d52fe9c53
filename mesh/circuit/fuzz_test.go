package circuit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"flag"
	"testing"

	"weft/crypto/identity"
	"weft/test/corpus"
)

var update = flag.Bool("update", false, "write testdata/fuzz anew")

// Whatever a server shows to a node that it calls removed, only what an issuer signed about that node is a proof.
func FuzzRemovalProof(f *testing.F) {
	fixed := func(n byte) identity.Key { return must(identity.ParseKey(bytes.Repeat([]byte{n}, identity.KeySize))) }
	root, node := fixed(1), fixed(2)
	good := must(identity.Issuer{Key: root}.Remove(node.ID(), identity.ByHand, day))
	corpus.Add(f, *update, "good", proof(&RemovedError{good}))
	corpus.Add(f, *update, "cut", proof(&RemovedError{good})[:20])
	corpus.Add(f, *update, "another", proof(&RemovedError{must(identity.Issuer{Key: root}.Remove(root.ID(), identity.ByHand, day))}))
	c := &Circuits{cfg: Config{Key: node, Root: root.Public()}}
	f.Fuzz(func(t *testing.T, b []byte) {
		var e *RemovedError
		switch err := c.readProof(bytes.NewReader(b)); {
		case err == nil:
		case !errors.As(err, &e) || e.Removal.Node != node.ID() || e.Removal.Verify(root.Public()) != nil:
			t.Fatalf("believed %v", err)
		}
	})
}

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
