package meshsim_test

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
)

// make sim-mesh sets these.
var (
	nodes  = flag.Int("n", 24, "nodes of the life that is played")
	nat    = flag.Float64("nat", 0.75, "share of them that cannot be dialled")
	loss   = flag.Float64("loss", 0.005, "share of datagrams that are lost on each path")
	alone  = flag.Bool("alone", false, "every node verifies and keeps everything itself: its true memory and CPU")
	phases = flag.String("phases", "storm,idle,change,churn,halves", "what happens, in this order")
	thin   = flag.Int("sparse", 0, "above this number of nodes sessions are opened by traffic; 0: all are open")
	every  = flag.Duration("every", 50*time.Millisecond, "time from one join to the next")
	step   = flag.Duration("step", time.Minute, "length of each phase but the storm")
)

// talk is how long after a storm of a thousand joins gossip goes on about them.
const talk = 2 * time.Minute

// wan is a network between continents.
func wan() meshtest.Conditions {
	return meshtest.Conditions{Delay: 40 * time.Millisecond, Jitter: 20 * time.Millisecond, Loss: *loss}
}

// TestLife plays the phases in their order and prints what each cost.
func TestLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(t, Spec{NAT: *nat, Conditions: wan(), Seed: 1, Alone: *alone, Sparse: *thin})
		defer w.End()
		play := map[string]func(*World){"storm": storm, "idle": idle, "change": change, "churn": churn, "halves": halves}
		for phase := range strings.SplitSeq(*phases, ",") {
			p, ok := play[phase]
			if !ok {
				t.Fatalf("no phase %q", phase)
			}
			start, cpu := time.Now(), cpuTime()
			p(w)
			w.report("", "%s took %v, and %v of CPU", phase, time.Since(start).Round(time.Second), (cpuTime() - cpu).Round(time.Second))
		}
		told, untrue, examples := w.Deaths()
		w.report("deaths", "%d told, %d of them false %v; %d of members that had not been cut off", told, untrue, examples, w.LateDeaths())
	})
}

// agree waits for all to agree and says when each of the three did.
func (w *World) agree(what string, limit time.Duration) {
	w.t.Helper()
	var roster, records, membership time.Duration
	start := time.Now()
	note := func(took *time.Duration, why string) {
		if why != "" {
			*took = 0
		} else if *took == 0 {
			*took = max(time.Since(start), 1)
		}
	}
	_, why := w.Within(limit, func() string {
		living := w.Living()
		r, d, m := RosterAgreed(living), RecordsAgreed(living), MembershipAgreed(living)
		note(&roster, r)
		note(&records, d)
		note(&membership, m)
		return r + d + m
	})
	if why != "" {
		w.t.Errorf("%s: after %v: %s", what, limit, why)
		return
	}
	w.report(what, "all agree: roster %.1fs, records %.1fs, membership %.1fs", roster.Seconds(), records.Seconds(), membership.Seconds())
}

// storm: all join through three.
func storm(w *World) {
	before := w.sample()
	over := time.Duration(*nodes-1) * *every
	w.Storm(*nodes-1, over)
	w.agree(fmt.Sprintf("%d joined in %v", *nodes-1, over), 10*time.Minute)
	w.report("storm", "%v", w.between(before, w.sample()))
	w.report("disk", "%s", w.disk())
	w.report("memory", "%s", w.memory())
}

// idle: nothing happens, and what happened before has been told.
func idle(w *World) {
	time.Sleep(max(*step, talk))
	before := w.sample()
	time.Sleep(*step)
	w.report("idle", "%v", w.between(before, w.sample()))
	w.report("memory", "%s", w.memory())
}

// change: one node says something new.
func change(w *World) {
	before := w.sample()
	w.Nodes[len(w.Nodes)/2].Change()
	w.agree("one record changed", 2*time.Minute)
	w.report("change", "%v", w.between(before, w.sample()))
}

// churn: every minute a tenth of the nodes loses power, and comes back half a minute later with other keys.
func churn(w *World) {
	const down = 30 * time.Second
	before := w.sample()
	n := max(1, len(w.Nodes)/10)
	type back struct {
		n  *Node
		at time.Time
	}
	var gone []back
	revive := func() {
		for len(gone) > 0 && !time.Now().Before(gone[0].at) {
			gone[0].n.keys++
			gone[0].n.Start()
			gone = gone[1:]
		}
	}
	for end := time.Now().Add(3 * *step); time.Now().Before(end); {
		victim := w.Nodes[1+w.rand.IntN(len(w.Nodes)-1)]
		if victim.Up() {
			victim.Stop()
			gone = append(gone, back{victim, time.Now().Add(down)})
		}
		time.Sleep(time.Minute / time.Duration(n))
		revive()
	}
	for len(gone) > 0 {
		time.Sleep(time.Until(gone[0].at))
		revive()
	}
	w.report("churn", "%v", w.between(before, w.sample()))
	w.agree("after the churn", 5*time.Minute)
}

// halves: the network is cut in two, each half goes on, and it is whole again.
func halves(w *World) {
	before := w.sample()
	w.Cut(func(a, b *Node) bool { return a.Index%2 != b.Index%2 })
	time.Sleep(2 * *step)
	w.Nodes[1].Change()
	w.Nodes[2].Change()
	w.report("halves", "%v", w.between(before, w.sample()))
	w.report("memory", "%s", w.memory())
	before = w.sample()
	w.Cut(nil)
	w.agree("whole again", 5*time.Minute)
	w.report("healing", "%v", w.between(before, w.sample()))
}
