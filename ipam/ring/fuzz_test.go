package ring

import (
	"bytes"
	"testing"

	"weft/mesh/peer"
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
	f.Add(encode(map[ID]*Grant{g.id: g}, nil))
	taken, _ := w.takeOver(f, r, 0, 1, 1)
	f.Add(taken.Encode())
	taken, _ = w.grant(f, taken, 0, "10.32.0.0/26", 2)
	taken, _ = w.takeOver(f, taken, 0, 2, 2)
	f.Add(taken.Encode())
	f.Fuzz(func(t *testing.T, wire []byte) {
		b, err := Decode(w.u, wire)
		if err != nil {
			return
		}
		// Both who believes every signature and who believes none.
		believe := w.judge(nil)
		believe.Verify = func(peer.ID, string, []byte, []byte) error { return nil }
		for _, judge := range []Judge{w.judge(nil), believe} {
			got, _ := New(w.u).Merge(w.u.Prove(b, judge))
			if err := got.Check(); err != nil {
				t.Fatal(err)
			}
			again, err := Decode(w.u, got.Encode())
			if err != nil {
				t.Fatal(err)
			}
			p := w.u.Prove(again, judge)
			if len(p.Rejected()) != 0 {
				t.Fatal(p.Rejected())
			}
			if back, _ := New(w.u).Merge(p); !bytes.Equal(back.Encode(), got.Encode()) {
				t.Fatal("a state travels as another one")
			}
		}
	})
}

// FuzzProposal: whatever comes in is refused or read as it was written, and nobody is taken for its writer.
func FuzzProposal(f *testing.F) {
	w := newWorld(f, 3, pool("10.32.0.0/24", 28))
	for i := range uint64(2) {
		p, err := Propose(w.u, w.keys[i], i+1, w.takeover(1, 2).Removed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p.Raw())
	}
	_, report := w.takeOver(f, New(w.u), 1, 1, 2)
	f.Add(report.Views[0].Raw())
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := ParseProposal(raw)
		if err != nil {
			return
		}
		if !bytes.Equal(p.Raw(), raw) || p.Names(p.Writer()) || len(p.Removed()) == 0 || p.Number() == 0 || p.Number() > MaxView {
			t.Fatalf("read as %+v", p.view)
		}
		if err := p.Verify(w.u, w.judge(nil)); err == nil && p.Writer() != w.id(0) && p.Writer() != w.id(1) {
			t.Fatalf("verified as written by %s", p.Writer())
		}
	})
}
