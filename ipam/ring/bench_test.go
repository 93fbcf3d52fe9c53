package ring

import "testing"

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
		b.SetBytes(int64(len(encode(r.links, r.views))))
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
		batch, err := Decode(w.u, wire)
		if err != nil {
			b.Fatal(err)
		}
		if got, _ := r.Merge(w.u.Prove(batch, r.Has, Keys(w.lookup))); got == r {
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
		New(w.u).Merge(w.u.Prove(batch, nil, Keys(w.lookup)))
	}
}

func BenchmarkOwners(b *testing.B) {
	_, r, _ := thousand(b)
	b.ReportAllocs()
	for b.Loop() {
		r.Owners()
	}
}
