package mesh_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

func TestThreeNodesMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(3)
		t.Logf("settled after %v", w.settle(2*time.Second))
	})
}

func TestThirtyNodesMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(30)
		t.Logf("settled after %v", w.settle(20*time.Second))
		before := w.net.Stats()
		time.Sleep(time.Minute)
		after := w.net.Stats()
		perNode := float64(after.Datagrams-before.Datagrams) / 60 / 30
		t.Logf("idle: %.1f datagrams/s, %.0f B/s, %.2f streams/s per node", perNode,
			float64(after.Bytes-before.Bytes)/60/30, float64(after.Streams-before.Streams)/60/30)
		if perNode > 10 {
			t.Errorf("an idle node sends %.1f datagrams/s", perNode)
		}
		if why := w.settled(w.nodes); why != "" {
			t.Error("after a minute of rest:", why)
		}
	})
}

func TestChangeSpreadsFast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(3)
		w.settle(2 * time.Second)
		time.Sleep(5 * time.Second)
		for v := range byte(10) {
			n := w.nodes[int(v)%3]
			n.state.add(v)
			n.mesh.Changed("counter")
			if took := w.within(200*time.Millisecond, w.allHave(v)); v == 0 {
				t.Logf("a replica's change was everywhere after %v", took)
			}
		}
		if err := w.nodes[1].mesh.Publish(func(r *mesh.Record) { r.MTU = 1400 }); err != nil {
			t.Fatal(err)
		}
		t.Logf("a record was everywhere after %v", w.settle(200*time.Millisecond))
	})
}

// Changes that come faster than they can be told delay nothing and flood nobody.
func TestChangesWithoutEndSpreadSteadily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(5)
		w.settle(5 * time.Second)
		before := w.net.Stats()
		n := w.nodes[3]
		for step := range 2500 {
			v := byte(step / 250)
			if step%250 == 0 {
				n.state.add(v)
			}
			n.mesh.Changed("counter")
			time.Sleep(2 * time.Millisecond)
			if step%250 == 150 { // 300 ms later, while changes go on
				if why := w.allHave(v)(); why != "" {
					t.Error(why)
				}
			}
		}
		after := w.net.Stats()
		if sent := after.Datagrams - before.Datagrams; sent > 2500 {
			t.Errorf("%d datagrams in 5 s", sent)
		}
	})
}

func (w *world) allHave(v byte) func() string {
	return func() string {
		for _, n := range w.nodes {
			if !n.state.has(v) {
				return fmt.Sprintf("%s lacks %d", n.name, v)
			}
		}
		return ""
	}
}

// halves of the cluster that do not hear each other for a while find together by themselves.
func TestSplitHeals(t *testing.T) {
	for _, c := range []struct {
		nodes int
		cut   time.Duration
	}{{3, 20 * time.Second}, {3, time.Hour}, {30, time.Minute}, {30, time.Hour}} {
		t.Run(fmt.Sprintf("%d nodes %v", c.nodes, c.cut), func(t *testing.T) {
			if mesh.RaceEnabled && c.nodes*int(c.cut/time.Minute) > 60 {
				t.Skip("too long for the race detector; runs without it")
			}
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, lan)
				defer w.end()
				w.form(c.nodes)
				w.settle(20 * time.Second)
				left, right := w.nodes[:c.nodes/2], w.nodes[c.nodes/2:]
				w.net.Split(w.ids(left), w.ids(right))
				time.Sleep(c.cut / 2)
				// Both sides go on with their lives.
				left[0].state.add(1)
				left[0].mesh.Changed("counter")
				right[0].state.add(2)
				right[0].mesh.Changed("counter")
				if err := right[0].mesh.Publish(func(r *mesh.Record) { r.MTU = 1300 }); err != nil {
					t.Fatal(err)
				}
				time.Sleep(c.cut / 2)
				if c.cut >= time.Minute {
					for _, n := range left {
						if info, _ := n.mesh.Peer(right[0].id()); info.State != peer.Dead || !info.Known {
							t.Errorf("%s says of the other side: %+v", n.name, info)
						}
					}
				}
				w.net.Mend()
				took := w.within(30*time.Second, func() string {
					if why := w.settled(w.nodes); why != "" {
						return why
					}
					return w.allHave(1)() + w.allHave(2)()
				})
				t.Logf("healed after %v", took)
			})
		})
	}
}

func TestOneWayCutKillsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(5)
		w.settle(5 * time.Second)
		w.net.CutOneWay(w.nodes[1].id(), w.nodes[2].id())
		dead := 0
		for range 120 {
			time.Sleep(time.Second)
			for _, n := range w.nodes {
				for _, info := range n.mesh.Peers() {
					if info.State == peer.Dead {
						dead++
					}
				}
			}
		}
		if dead > 0 {
			t.Errorf("%d times somebody was called dead", dead)
		}
		w.nodes[1].state.add(7)
		w.nodes[1].mesh.Changed("counter")
		t.Logf("a change went round the cut in %v", w.within(10*time.Second, w.allHave(7)))
		w.net.Mend()
		w.settle(10 * time.Second)
	})
}

func TestLossIsRepaired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, meshtest.Conditions{Delay: 20 * time.Millisecond, Jitter: 20 * time.Millisecond, Loss: 0.2})
		defer w.end()
		w.form(12)
		t.Logf("formed after %v", w.within(time.Minute, func() string {
			for _, n := range w.nodes {
				if got := n.mesh.Stats().RecordsStored; got != len(w.nodes) {
					return fmt.Sprintf("%s has %d records", n.name, got)
				}
			}
			return ""
		}))
		worst := time.Duration(0)
		for v := range byte(20) {
			n := w.nodes[int(v)%len(w.nodes)]
			n.state.add(v)
			n.mesh.Changed("counter")
			worst = max(worst, w.within(10*time.Second, w.allHave(v)))
		}
		t.Logf("slowest of 20 changes: %v", worst)
	})
}

// Before the members have sessions for datagrams there are streams only: membership and state do without.
func TestStreamsAloneSuffice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.deaf.Store(true)
		w.form(4)
		t.Logf("settled after %v", w.settle(time.Minute))
		for range 120 {
			time.Sleep(time.Second)
			if why := w.settled(w.nodes); why != "" {
				t.Fatal(why)
			}
		}
		w.nodes[1].state.add(1)
		w.nodes[1].mesh.Changed("counter")
		t.Logf("a change was everywhere after %v", w.within(2*time.Minute, w.allHave(1)))

		// A session comes up, and the hint that it did carries over what was lost.
		w.nodes[2].state.add(2)
		w.nodes[2].mesh.Changed("counter")
		time.Sleep(time.Second)
		w.deaf.Store(false)
		for _, n := range w.nodes {
			w.nodes[2].mesh.Hint(n.id())
		}
		w.within(200*time.Millisecond, w.allHave(2))
	})
}
