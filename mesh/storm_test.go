package mesh_test

import (
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

// Many machines enter at the same moment through one member, over a network that loses some.
func TestManyJoinAtOnce(t *testing.T) {
	if mesh.RaceEnabled {
		t.Skip("too long for the race detector; runs without it")
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, meshtest.Conditions{Delay: 20 * time.Millisecond, Jitter: 10 * time.Millisecond, Loss: 0.02})
		defer w.end()
		first := w.nodes[0]
		first.start()
		var certs [][]byte
		for range 59 {
			key := newKey(t)
			n := w.add(key, w.certify(key, uint64(len(w.nodes))))
			n.seeds = []peer.ID{first.id()}
			certs = append(certs, n.cert.Raw())
		}
		if err := first.mesh.Roster().AddRaw(certs...); err != nil {
			t.Fatal(err)
		}
		for _, n := range w.nodes[1:] {
			n.items = [][]byte{first.cert.Raw()} // it knows its sponsor and itself
			n.start()
		}
		// A few seconds as a rule. One that alone has missed another finds it by its thinned tries or the next exchange of
		// states, which are a minute apart in a cluster of this size.
		t.Logf("60 nodes settled after %v", w.settle(2*time.Minute))
		before := w.net.Stats()
		time.Sleep(time.Minute)
		after := w.net.Stats()
		t.Logf("idle: %.1f datagrams/s, %.2f streams/s per node", float64(after.Datagrams-before.Datagrams)/60/60,
			float64(after.Streams-before.Streams)/60/60)
	})
}
