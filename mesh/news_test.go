package mesh_test

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh"
)

// missed is by when even a member that all the news missed has heard of the difference and pulled. Whom news reaches is
// chance: at 12 nodes one is missed in a few hundred tries.
const missed = 10 * time.Second

func (w *world) pulls() (n uint64) {
	for _, n1 := range w.nodes {
		n += n1.mesh.Stats().Pulls
	}
	return n
}

// A change that is short needs no stream: it arrives with the word that there is one.
func TestNewsIsNotPulled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(12)
		w.settle(20 * time.Second)
		time.Sleep(10 * time.Second)
		before := w.pulls()
		if err := w.nodes[3].mesh.Publish(func(r *mesh.Record) { r.MTU = 1400 }); err != nil {
			t.Fatal(err)
		}
		t.Logf("a record was everywhere after %v", w.settle(missed))
		w.nodes[5].state.add(77)
		w.nodes[5].mesh.Announce("counter", []byte{77})
		t.Logf("another state after %v", w.within(missed, w.allHave(77)))
		key := newKey(t)
		cert := w.certify(key, uint64(len(w.nodes)))
		if err := w.nodes[7].mesh.Roster().Add(cert); err != nil {
			t.Fatal(err)
		}
		t.Logf("a certificate after %v", w.within(missed, func() string {
			for _, n := range w.nodes {
				if !n.mesh.Roster().Has(key.ID()) {
					return n.name + " lacks it"
				}
			}
			return ""
		}))
		time.Sleep(10 * time.Second)
		if n := w.pulls() - before; n > 12 { // one that all the news has missed asks, and may be asked in turn
			t.Errorf("%d pulls for three changes at 12 nodes", n)
		}
	})
}

// What is too long for a datagram, or more than its due, arrives all the same.
func TestWhatIsNotNewsIsPulled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(4)
		w.settle(20 * time.Second)
		long := make([]byte, 1000)
		for i := range long {
			long[i] = byte(i)
		}
		w.nodes[0].state.add(long...)
		w.nodes[0].mesh.Announce("counter", long)
		w.within(missed, w.allHave(255))
		for range 400 { // more than are kept to be told
			if err := w.nodes[1].mesh.Publish(func(r *mesh.Record) { r.MTU++ }); err != nil {
				t.Fatal(err)
			}
			w.nodes[2].mesh.Announce("counter", bytes.Repeat([]byte{1}, 1+int(time.Now().UnixNano()%100)))
		}
		w.settle(missed)
	})
}

// Of several pieces about one member the newest is told, so that none who was restored from a backup outbids an old one.
func TestNewerNewsTakesThePlaceOfOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(3)
		w.settle(missed)
		time.Sleep(10 * time.Second)
		before := w.nodes[0].mesh.Stats().News
		for mtu := range 20 {
			if err := w.nodes[1].mesh.Publish(func(r *mesh.Record) { r.MTU = 1300 + mtu }); err != nil {
				t.Fatal(err)
			}
		}
		w.settle(missed)
		if n := w.nodes[0].mesh.Stats().News - before; n != 1 {
			t.Errorf("20 changes within a moment made %d pieces of news", n)
		}
	})
}

// Everybody learns of many changes at once, on a network that loses a tenth.
func TestNewsInCrowds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := lan
		c.Loss = 0.1
		w := newWorld(t, c)
		defer w.end()
		w.form(10)
		w.settle(time.Minute)
		for i, n := range w.nodes {
			for k := range 5 {
				n.name = fmt.Sprintf("again-%d-%d", i, k)
				if err := n.mesh.Publish(func(r *mesh.Record) { r.Name = n.name }); err != nil {
					t.Fatal(err)
				}
			}
		}
		t.Logf("50 changes of 10 nodes were everywhere after %v", w.settle(20*time.Second))
	})
}
