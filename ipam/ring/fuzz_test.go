package ring

import (
	"bytes"
	"testing"
)

// FuzzDecode: whatever comes in, what is merged is a sound state, and travels on as it is.
func FuzzDecode(f *testing.F) {
	w := newWorld(f, 3, pool("10.32.0.0/24", 28))
	r := New(w.u)
	f.Add(r.Encode())
	r, _ = w.grant(f, r, 0, "10.32.0.128/25", 1)
	r, last := w.grant(f, r, 1, "10.32.0.192/26", 2)
	f.Add(r.Encode())
	f.Add(r.Proof(last))
	g := newerGrant(w, "10.32.0.64/26", 1)
	f.Add(encode(map[ID]*Grant{g.id: g}, [][]byte{{1}, {2}}))
	f.Fuzz(func(t *testing.T, wire []byte) {
		b, err := Decode(w.u, wire)
		if err != nil {
			return
		}
		// Both who believes every signature and who believes none.
		for _, verify := range []Verifier{Keys(w.lookup), nil} {
			known := func(ID) bool { return verify == nil }
			got, _ := New(w.u).Merge(w.u.Prove(b, known, verify))
			if err := got.Check(); err != nil {
				t.Fatal(err)
			}
			again, err := Decode(w.u, got.Encode())
			if err != nil {
				t.Fatal(err)
			}
			p := w.u.Prove(again, known, verify)
			if len(p.Rejected()) != 0 {
				t.Fatal(p.Rejected())
			}
			if back, _ := New(w.u).Merge(p); !bytes.Equal(back.Encode(), got.Encode()) {
				t.Fatal("a state travels as another one")
			}
		}
	})
}
