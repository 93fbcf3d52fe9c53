package ring

import (
	"bytes"
	"net/netip"
	"testing"
)

// thousand is a ring of a thousand grants in a /12, each to the next member, and the same with one grant more.
func thousand(b *testing.B) (w *world, r, next *Ring) {
	b.Helper()
	w = newWorld(b, 40, pool("10.32.0.0/12", 26))
	r = New(w.u)
	for i := range 1024 {
		with, report, err := r.Grant(w.keys[0], w.u.Block(i*16, 16), w.id(1+i%39))
		if err != nil || len(report.Added) != 1 {
			b.Fatal(err)
		}
		r = with
	}
	next, _, err := r.Grant(w.keys[1], w.u.Block(8, 8), w.id(2))
	if err != nil {
		b.Fatal(err)
	}
	return w, r, next
}

func BenchmarkEncode(b *testing.B) {
	_, r, _ := thousand(b)
	b.ReportAllocs()
	for b.Loop() {
		b.SetBytes(int64(len(encodeInOrder(r.order, r.views))))
	}
}

func BenchmarkDecode(b *testing.B) {
	w, r, _ := thousand(b)
	wire := r.Encode()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(w.u, wire); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMergeOneGrant is what every member does for every grant of the cluster: a whole state with one new entry.
func BenchmarkMergeOneGrant(b *testing.B) {
	w, r, next := thousand(b)
	wire := next.Encode()
	b.ReportAllocs()
	for b.Loop() {
		batch, err := r.Decode(wire)
		if err != nil {
			b.Fatal(err)
		}
		if got, _ := r.Merge(w.u.Prove(batch, w.judge(r))); got == r {
			b.Fatal("nothing merged")
		}
	}
}

// BenchmarkMergeDelta is the same where only what is lacking travels.
func BenchmarkMergeDelta(b *testing.B) {
	w, r, next := thousand(b)
	b.ReportAllocs()
	for b.Loop() {
		batch, err := r.Decode(next.Delta(r.Summary()))
		if err != nil {
			b.Fatal(err)
		}
		if got, _ := r.Merge(w.u.Prove(batch, w.judge(r))); got == r {
			b.Fatal("nothing merged")
		}
	}
}

// BenchmarkMergeAll is what a newcomer does once: a thousand signatures.
func BenchmarkMergeAll(b *testing.B) {
	w, r, _ := thousand(b)
	batch, err := Decode(w.u, r.Encode())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		New(w.u).Merge(w.u.Prove(batch, w.judge(nil)))
	}
}

// BenchmarkTakeOver completes a view in a ring of a thousand grants: of a member that owns 1/39 of it, and of the founder,
// who wrote all of it.
func BenchmarkTakeOver(b *testing.B) {
	w, r, _ := thousand(b)
	for _, bench := range []struct {
		name                 string
		coordinator, removed int
	}{{"member", 0, 5}, {"founder", 1, 0}} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, report, err := r.TakeOver(w.keys[bench.coordinator], w.takeover(1, bench.removed))
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(len(report.Added)), "takeovers")
				b.ReportMetric(float64(len(report.Views[0].Raw())), "record-bytes")
			}
		})
	}
}

// TestBytesOfAThousandMembers prints the size of a state in which each of a thousand members has one block. The estimate
// of 9 KB was for bare runs: block, view, seq and a short name of the owner. What makes a grant prove itself is the rest:
// a signature, three names and the parent.
func TestBytesOfAThousandMembers(t *testing.T) {
	alone(t)
	w := newWorld(t, 1000, pool("10.32.0.0/12", 26))
	r := New(w.u)
	own := make([]netip.Prefix, 1000)
	own[0] = w.u.Pools()[0].Prefix
	for i := 1; i < 1000; i++ {
		// Each from the one that has the other half, as nodes join.
		half := 1
		for half*2 <= i {
			half *= 2
		}
		block := own[i-half]
		from, to, _ := w.u.Range(block)
		own[i-half], own[i] = w.u.Block(from, (to-from)/2), w.u.Block((from+to)/2, (to-from)/2)
		next, _, err := r.Grant(w.keys[i-half], own[i], w.id(i))
		if err != nil {
			t.Fatal(err)
		}
		r = next
	}
	size := len(r.Encode())
	t.Logf("%d grants, %d bytes, %d each, against 9 each of the estimate: 64 are the signature, 48 the names of owner, "+
		"grantor and parent, 13 block and seq, the rest tags and lengths", r.Len(), size, size/r.Len())
	if size > 200_000 {
		t.Errorf("%d bytes", size)
	}
	// One join later, who has not heard of it sends its summary and gets what it lacks.
	next, _, err := r.Grant(w.keys[0], w.u.Block(8, 8), w.id(1))
	if err != nil {
		t.Fatal(err)
	}
	delta := next.Delta(r.Summary())
	t.Logf("a summary of %d bytes, and a delta of %d for one more grant", len(r.Summary()), len(delta))
	if len(r.Summary())+len(delta) > 8<<10 {
		t.Errorf("a summary of %d bytes and a delta of %d", len(r.Summary()), len(delta))
	}
	if again, _, rejected := w.merge(t, r, delta); len(rejected) != 0 || !bytes.Equal(again.Digest(), next.Digest()) {
		t.Errorf("a delta does not carry the change: %v", rejected)
	}
	if next.Delta(next.Summary()) != nil {
		t.Error("nothing is lacking, and something is sent")
	}
}

func BenchmarkOwners(b *testing.B) {
	_, r, _ := thousand(b)
	b.ReportAllocs()
	for b.Loop() {
		r.Owners()
	}
}
