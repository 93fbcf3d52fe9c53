package identity

import (
	"bytes"
	"testing"

	"weft/test/corpus"
)

// fuzzItem checks that whatever parses keeps its bytes, and that verifying it does not panic.
func fuzzItem(f *testing.F, parse func([]byte) (Item, error), kinds ...string) {
	f.Helper()
	w := newWorld(f)
	for _, k := range kinds {
		corpus.Add(f, *update, k, w.items()[k].Raw())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		was := bytes.Clone(b)
		it, err := parse(b)
		if err != nil {
			return
		}
		clear(b) // an item does not depend on the buffer that it came in
		if !bytes.Equal(it.Raw(), was) {
			t.Fatal("the bytes changed")
		}
		_ = it.Verify(w.root.Public()) // any answer will do
	})
}

func FuzzParse(f *testing.F) {
	fuzzItem(f, Parse, "cluster", "delegation", "invitation", "revocation", "application", "founding", "certificate", "removal", "leaving")
}

func FuzzParseCluster(f *testing.F) {
	fuzzItem(f, func(b []byte) (Item, error) { return orNil(ParseCluster(b)) }, "cluster")
}

func FuzzParseDelegation(f *testing.F) {
	fuzzItem(f, func(b []byte) (Item, error) { return orNil(ParseDelegation(b)) }, "delegation")
}

func FuzzParseInvitation(f *testing.F) {
	fuzzItem(f, func(b []byte) (Item, error) { return orNil(ParseInvitation(b)) }, "invitation")
}

func FuzzParseRevocation(f *testing.F) {
	fuzzItem(f, func(b []byte) (Item, error) { return orNil(ParseRevocation(b)) }, "revocation")
}

func FuzzParseApplication(f *testing.F) {
	fuzzItem(f, func(b []byte) (Item, error) { return orNil(ParseApplication(b)) }, "application")
}

func FuzzParseCertificate(f *testing.F) {
	fuzzItem(f, func(b []byte) (Item, error) { return orNil(ParseCertificate(b)) }, "founding", "certificate")
}

func FuzzParseRemoval(f *testing.F) {
	fuzzItem(f, func(b []byte) (Item, error) { return orNil(ParseRemoval(b)) }, "removal", "leaving")
}
