package ring

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weft/mesh/peer"
)

// drawGrant writes any grant that can be read: by anybody, of anything, resting on anything, often wrong.
func drawGrant(t *rapid.T, w *world, before []*Grant, views []*View) *Grant {
	signer := w.keys[rapid.IntRange(0, len(w.keys)-1).Draw(t, "signer")]
	owner := w.id(rapid.IntRange(0, len(w.keys)-1).Draw(t, "owner"))
	n := 1 << rapid.IntRange(0, 4).Draw(t, "size")
	block := w.u.Block(rapid.IntRange(0, w.u.Atoms()/n-1).Draw(t, "block")*n, n)
	if len(views) > 0 && rapid.IntRange(0, 2).Draw(t, "takeover") == 0 {
		return drawTakeover(t, w, views, block)
	}
	view := uint64(rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "view"))
	seq := uint64(rapid.IntRange(1, 5).Draw(t, "seq"))
	var parent ID
	if len(before) > 0 && rapid.IntRange(0, 3).Draw(t, "chained") > 0 {
		p := rapid.SampledFrom(before).Draw(t, "parent")
		parent = p.id
		if rapid.Bool().Draw(t, "fitting") {
			for _, k := range w.keys {
				if k.ID() == p.owner {
					signer = k
				}
			}
			view, seq = p.view, p.seq+uint64(rapid.IntRange(1, 2).Draw(t, "step"))
			if rapid.Bool().Draw(t, "same block") {
				block = p.block
			}
		}
	} else if rapid.Bool().Draw(t, "founder") {
		signer, view = w.keys[0], 0
	}
	g := newGrant(w.u, signer, block, view, seq, owner, parent)
	if rapid.IntRange(0, 9).Draw(t, "forge") == 0 {
		raw := slices.Clone(g.raw)
		raw[len(raw)-1] ^= 0x40
		g, _ = parseGrant(w.u, raw)
	}
	return g
}

// drawView writes any record that can be read.
func drawView(t *rapid.T, w *world, before []*Grant, views []*View) *View {
	writer := rapid.IntRange(0, len(w.keys)-1).Draw(t, "writer")
	var removed []Named
	var old []peer.ID
	for i := range w.keys {
		switch {
		case i == writer:
		case rapid.Bool().Draw(t, "removed"):
			removed = append(removed, Named{w.id(i), 1})
		case rapid.IntRange(0, 3).Draw(t, "removed before") == 0:
			old = append(old, w.id(i))
		}
	}
	var confirmed []ID
	for _, g := range before {
		if rapid.IntRange(0, 3).Draw(t, "confirmed") == 0 {
			confirmed = append(confirmed, g.id)
		}
	}
	for _, v := range views {
		if rapid.IntRange(0, 3).Draw(t, "confirmed view") == 0 {
			confirmed = append(confirmed, v.id)
		}
	}
	slices.SortFunc(confirmed, ID.compare)
	number := uint64(rapid.IntRange(1, 4).Draw(t, "number"))
	v, err := newView(w.u, w.keys[writer], viewDomain, View{
		number: number, removed: removed, confirmed: slices.Compact(confirmed), before: old,
	})
	if err != nil { // it removes nobody
		return nil
	}
	return v
}

// drawTakeover writes a takeover that rests on a record, rightly or not.
func drawTakeover(t *rapid.T, w *world, views []*View, block netip.Prefix) *Grant {
	v := rapid.SampledFrom(views).Draw(t, "record")
	signer := w.keys[rapid.IntRange(0, len(w.keys)-1).Draw(t, "taker")]
	if rapid.IntRange(0, 3).Draw(t, "writer") > 0 {
		for _, k := range w.keys {
			if k.ID() == v.writer {
				signer = k
			}
		}
	}
	from := w.id(rapid.IntRange(0, len(w.keys)-1).Draw(t, "from"))
	heir := w.id(rapid.IntRange(0, len(w.keys)-1).Draw(t, "heir"))
	return newTakeover(w.u, signer, block, v, from, heir)
}

// drawWire writes a state with some of the grants, view records and rubbish.
func drawWire(t *rapid.T, all []*Grant, views []*View, label string) []byte {
	links := make(map[ID]*Grant)
	for _, g := range all {
		if rapid.IntRange(0, 3).Draw(t, label) > 0 {
			links[g.id] = g
		}
	}
	if rapid.Bool().Draw(t, label+" rubbish") {
		rubbish := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, label+" bytes")
		links[ID{}] = &Grant{raw: rubbish, block: all[0].block}
	}
	var records []*View
	for _, v := range views {
		if rapid.IntRange(0, 3).Draw(t, label+" view") > 0 {
			records = append(records, v)
		}
	}
	if rapid.Bool().Draw(t, label+" view rubbish") {
		records = append(records, &View{raw: rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, label+" view bytes")})
	}
	return encode(links, records)
}

func TestMergeIsALatticeJoinOnArbitraryStates(t *testing.T) {
	w := newWorld(t, 4, pool("10.32.0.0/24", 28), pool("fd00::/124", 128))
	prove := func(t *rapid.T, wire []byte) Proven {
		b, err := Decode(w.u, wire)
		if err != nil {
			t.Fatal(err)
		}
		return w.u.Prove(b, w.judge(nil))
	}
	merge := func(t *rapid.T, r *Ring, ps ...Proven) *Ring {
		for _, p := range ps {
			next, report := r.Merge(p)
			if report.Changed() != (next != r) {
				t.Fatal("the report and the state disagree on a change")
			}
			if err := next.Check(); err != nil {
				t.Fatal(err)
			}
			if err := next.CheckSuccessor(r); err != nil {
				t.Fatal(err)
			}
			r = next
		}
		return r
	}
	same := func(t *rapid.T, what string, a, b *Ring) {
		if !bytes.Equal(a.Encode(), b.Encode()) || !bytes.Equal(a.Digest(), b.Digest()) {
			t.Fatalf("merge is not %s", what)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		var all []*Grant
		var views []*View
		for range rapid.IntRange(1, 12).Draw(t, "grants") {
			if rapid.IntRange(0, 4).Draw(t, "view or grant") == 0 {
				if v := drawView(t, w, all, views); v != nil {
					views = append(views, v)
				}
			}
			all = append(all, drawGrant(t, w, all, views))
		}
		a, b := prove(t, drawWire(t, all, views, "a")), prove(t, drawWire(t, all, views, "b"))
		c := prove(t, drawWire(t, all, views, "c"))
		zero := New(w.u)
		ab := merge(t, zero, a, b)
		same(t, "commutative", ab, merge(t, zero, b, a))
		same(t, "idempotent", ab, merge(t, ab, b, a, b))
		abc := merge(t, ab, c)
		// Associative: what a state has become travels and is merged like what it was made of.
		bc := merge(t, zero, b, c)
		same(t, "associative", abc, merge(t, merge(t, zero, a), prove(t, bc.Encode())))
		same(t, "associative", abc, merge(t, zero, prove(t, bc.Encode()), prove(t, ab.Encode())))
		if merge(t, abc, prove(t, abc.Encode())) != abc {
			t.Fatal("a state changes when it is merged with itself")
		}
		// What one state lacks of another is as good as all of it.
		if d := ab.Delta(bc.summarize()); d != nil {
			same(t, "served by deltas", abc, merge(t, bc, prove(t, d)))
		} else if merge(t, bc, prove(t, ab.Encode())) != bc {
			t.Fatal("a delta is empty, and something is lacking")
		}
	})
}

func TestEncodeKeepsEverything(t *testing.T) {
	w := newWorld(t, 4, pool("10.32.0.0/24", 28))
	rapid.Check(t, func(t *rapid.T) {
		r := New(w.u)
		for range rapid.IntRange(0, 20).Draw(t, "grants") {
			owned := rapid.SampledFrom(r.Runs()).Draw(t, "run")
			from, to, _ := w.u.Range(owned.Block)
			n := to - from
			if n > 1 && rapid.Bool().Draw(t, "half") {
				n /= 2
			}
			for _, k := range w.keys {
				if k.ID() != owned.Owner {
					continue
				}
				next, report, err := r.Grant(k, w.u.Block(to-n, n), w.id(rapid.IntRange(0, 3).Draw(t, "owner")))
				if err != nil {
					t.Fatal(err)
				}
				if err := next.CheckPeers(r); err != nil {
					t.Fatal(err)
				}
				b, err := Decode(w.u, next.Proof(report.Added))
				if err != nil {
					t.Fatal(err)
				}
				p := w.u.Prove(b, w.judge(r))
				if len(p.Rejected()) != 0 {
					t.Fatal(p.Rejected())
				}
				// Who has the state before and hears the proof has the state after.
				if told, _ := r.Merge(p); !bytes.Equal(told.Digest(), next.Digest()) {
					t.Fatal("the proof of a grant does not carry it")
				}
				r = next
			}
		}
		b, err := Decode(w.u, r.Encode())
		if err != nil {
			t.Fatal(err)
		}
		got, report := New(w.u).Merge(w.u.Prove(b, w.judge(nil)))
		if !bytes.Equal(got.Encode(), r.Encode()) || len(report.Conflicts) != 0 {
			t.Fatal("decoded another state")
		}
	})
}
