package circuit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"weft/crypto/identity"
)

var update = flag.Bool("update", false, "write testdata/fuzz anew")

// seed adds an input, and with -update commits it.
func seed(f *testing.F, name string, b []byte) {
	f.Add(b)
	if !*update {
		return
	}
	dir := filepath.Join("testdata", "fuzz", f.Name())
	text := fmt.Sprintf("go test fuzz v1\n[]byte(%q)\n", b)
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)); err != nil {
		f.Fatal(err)
	}
}

func FuzzParseProof(f *testing.F) {
	fixed := func(n byte) identity.Key { return must(identity.ParseKey(bytes.Repeat([]byte{n}, identity.KeySize))) }
	root, node := fixed(1), fixed(2)
	cert := must(identity.Found(root, node, "n1", day))
	leaf := must(x509.ParseCertificate(must(present(node, root.Public(), cert)).Certificate[0]))
	for _, e := range leaf.Extensions {
		if e.Id.Equal(proofOID) {
			seed(f, "founder", e.Value)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		root, cert, err := parseProof(b)
		if err == nil && (len(root) != ed25519.PublicKeySize || cert == nil) {
			t.Fatal("half a proof")
		}
	})
}
