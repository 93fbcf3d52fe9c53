package meshsim_test

import (
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// healed is how long all may take to agree again, whatever happened and however long it lasted.
const healed = 30 * time.Second

// partitions are ways in which a network fails.
var partitions = []struct {
	name   string
	parted func(nodes int) func(a, b *Node) bool
	flap   time.Duration // it comes and goes
}{
	{"half and half", halfAndHalf, 0},
	{"one way", func(int) func(a, b *Node) bool {
		return func(a, b *Node) bool { return a.Index%2 == 0 && b.Index%2 == 1 }
	}, 0},
	{"a ring, each hears its neighbours", func(nodes int) func(a, b *Node) bool {
		return func(a, b *Node) bool {
			d := (a.Index - b.Index + nodes) % nodes
			return d != 1 && d != nodes-1
		}
	}, 0},
	{"half and half, every 5 s", halfAndHalf, 5 * time.Second},
}

func halfAndHalf(int) func(a, b *Node) bool {
	return func(a, b *Node) bool { return a.Index%2 != b.Index%2 }
}

// lengths of partitions; an hour only in the long run.
func lengths() []time.Duration {
	if os.Getenv("WEFT_TEST_LONG") != "" {
		return []time.Duration{20 * time.Second, 5 * time.Minute, time.Hour}
	}
	return []time.Duration{20 * time.Second, 5 * time.Minute}
}

func TestPartitionsHeal(t *testing.T) {
	skipWithRace(t)
	const nodes = 16
	for _, p := range partitions {
		for _, length := range lengths() {
			t.Run(fmt.Sprintf("%s, %v", p.name, length), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := New(t, Spec{NAT: 0.75, Conditions: wan(), Seed: 7})
					defer w.End()
					w.Storm(nodes-1, time.Second)
					w.settle(time.Minute)
					parted := p.parted(nodes)
					end := time.Now().Add(length)
					for cut := true; time.Now().Before(end); cut = !cut {
						if cut {
							w.Cut(parted)
						} else {
							w.Cut(nil)
						}
						if p.flap == 0 {
							time.Sleep(length)
						} else {
							time.Sleep(min(p.flap, time.Until(end)))
						}
					}
					w.Nodes[1].Change() // news on either side
					w.Nodes[2].Change()
					w.Cut(nil)
					t.Logf("whole after %v", w.settle(healed))
				})
			})
		}
	}
}

// A whole site loses power, and only those come back who were nobody's seed: they find each other by what is on their
// disks.
func TestColdStartWithoutSeeds(t *testing.T) {
	skipWithRace(t)
	synctest.Test(t, func(t *testing.T) {
		w := New(t, Spec{NAT: 0.75, Conditions: wan(), Seed: 8})
		defer w.End()
		w.Storm(19, time.Second)
		w.settle(time.Minute)
		for _, n := range w.Nodes {
			n.Stop()
		}
		time.Sleep(10 * time.Minute)
		for _, i := range w.rand.Perm(len(w.Nodes)) {
			if n := w.Nodes[i]; i >= sponsors {
				n.Start()
				time.Sleep(200 * time.Millisecond)
			}
		}
		t.Logf("17 of 20 together after %v", w.settle(healed))
		for range 3 { // the seeds are replaced by others
			w.JoinAt(w.Nodes[len(w.Nodes)-1])
		}
		t.Logf("20 again after %v", w.settle(healed))
	})
}

// Relays die one after the other until few are left; nobody who lives is called dead by one that lives.
func TestRelaysDie(t *testing.T) {
	skipWithRace(t)
	synctest.Test(t, func(t *testing.T) {
		w := New(t, Spec{NAT: 0.75, Conditions: wan(), Seed: 9})
		defer w.End()
		w.Storm(31, time.Second)
		w.settle(time.Minute)
		time.Sleep(grace)
		relays := w.dialable()
		for _, n := range relays[:len(relays)-2] {
			n.Stop()
			time.Sleep(10 * time.Second)
		}
		t.Logf("%d of %d relays died; the others agree after %v", len(relays)-2, len(relays), w.settle(time.Minute))
		if _, untrue, examples := w.Deaths(); untrue > 0 {
			t.Errorf("%d false deaths: %v", untrue, examples)
		}
	})
}

// settle waits for all that live to agree.
func (w *World) settle(limit time.Duration) time.Duration {
	w.t.Helper()
	took, why := w.Within(limit, w.Agreed)
	if why != "" {
		w.t.Fatalf("after %v: %s", took, why)
	}
	return took.Round(100 * time.Millisecond)
}
