package wire

import (
	"testing"

	"pgregory.net/rapid"
)

func TestQueueDropsTheOldest(t *testing.T) {
	q := newQueue()
	for i := range maxQueued + 10 {
		q.push(Datagram{Data: []byte{byte(i), byte(i >> 8)}})
	}
	if q.n != maxQueued || q.lost() != 10 {
		t.Fatalf("%d wait, %d dropped", q.n, q.lost())
	}
	d, ok := q.pop()
	if !ok || d.Data[0] != 10 {
		t.Fatalf("first is %v", d.Data)
	}
}

// The queue behaves as a list that loses its head when it grows too long or too heavy.
func TestQueueModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := newQueue()
		var model [][]byte
		bytes := 0
		dropped := uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				for range rapid.IntRange(1, 200).Draw(t, "times") {
					b := make([]byte, rapid.SampledFrom([]int{0, 1, 60, maxDatagram}).Draw(t, "size"))
					q.push(Datagram{Data: b})
					for len(model) > 0 && (len(model) == maxQueued || bytes+len(b) > maxQueuedBytes) {
						bytes -= len(model[0])
						model = model[1:]
						dropped++
					}
					model = append(model, b)
					bytes += len(b)
				}
			},
			"pop": func(t *rapid.T) {
				d, ok := q.pop()
				if ok != (len(model) > 0) {
					t.Fatalf("pop says %v with %d in the model", ok, len(model))
				}
				if ok {
					if len(d.Data) != len(model[0]) {
						t.Fatalf("popped %d bytes, want %d", len(d.Data), len(model[0]))
					}
					bytes -= len(model[0])
					model = model[1:]
				}
			},
			"": func(t *rapid.T) {
				if q.n != len(model) || q.bytes != bytes || q.lost() != dropped {
					t.Fatalf("%d wait with %d bytes, %d dropped; want %d with %d, %d",
						q.n, q.bytes, q.lost(), len(model), bytes, dropped)
				}
				if len(model) > 0 && len(q.ready) == 0 {
					t.Fatal("a taker would not be woken")
				}
			},
		})
	})
}
