package path

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/mesh/peer"
)

// world is the network between a Set and its peer, on a clock of its own.
type world struct {
	t      rapid.TB
	now    time.Time
	set    Set
	busy   bool
	roads  map[Path]*road
	air    []answer
	asked  map[Path]int
	moves  int
	random func() float64
}

// road is what a path is like.
type road struct {
	up   bool
	rtt  time.Duration
	size int     // largest that passes; 0: any
	loss float64 // of probes, both ways together
	late func() time.Duration
}

type answer struct {
	at   time.Time
	ask  Ask
	path Path
}

func newWorld(t rapid.TB) *world {
	return &world{t: t, now: time.Unix(1_000_000, 0), roads: map[Path]*road{}, asked: map[Path]int{}, busy: true}
}

func (w *world) usable(p Path) bool { return w.roads[p] != nil }

// want tells the set all roads.
func (w *world) want() {
	var all []Path
	for p := range w.roads {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b Path) int { return slices.Compare([]byte(a.String()), []byte(b.String())) })
	w.set.Want(all, w.usable, w.now)
}

// run lets time pass; after is called after each event.
func (w *world) run(d time.Duration, after func()) {
	for end := w.now.Add(d); ; {
		before := w.set.Active()
		asks, wake := w.set.Step(w.now, w.busy, nil)
		for _, a := range asks {
			w.asked[a.Path]++
			r := w.roads[a.Path]
			size := a.Size
			if a.Halved {
				size /= 2
			}
			if r == nil || !r.up || r.size > 0 && size > r.size || r.loss > 0 && w.random() < r.loss {
				continue
			}
			rtt := r.rtt
			if r.late != nil {
				rtt += r.late()
			}
			w.air = append(w.air, answer{w.now.Add(rtt), a, a.Path})
		}
		next := end
		if !wake.IsZero() && wake.Before(next) {
			next = wake
		}
		for _, a := range w.air {
			if a.at.Before(next) {
				next = a.at
			}
		}
		if !next.After(w.now) {
			next = w.now.Add(time.Millisecond)
		}
		if next.After(end) || next.Equal(end) {
			w.now = end
			w.count(before, after)
			return
		}
		w.now = next
		w.air = slices.DeleteFunc(w.air, func(a answer) bool {
			if a.at.After(w.now) {
				return false
			}
			w.set.Answer(a.ask.Number, a.ask.Size, w.now)
			return true
		})
		w.count(before, after)
	}
}

func (w *world) count(before Path, after func()) {
	if w.set.Active() != before {
		w.moves++
	}
	if after != nil {
		after()
	}
}

func addr(n int) Path {
	return Direct(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 6783))
}

var relay1, relay2 = peer.ID{1}, peer.ID{2}

func TestADirectPathIsTakenSoon(t *testing.T) {
	for _, rtt := range []time.Duration{100 * time.Microsecond, 10 * time.Millisecond, 300 * time.Millisecond} {
		w := newWorld(t)
		w.set.WantMTU(1420)
		w.roads[Through(relay1)] = &road{up: true, rtt: rtt, size: 1372}
		w.want()
		w.set.Established(Through(relay1), w.now)
		w.run(time.Minute, nil)
		if got := w.set.Active(); got != Through(relay1) {
			t.Fatalf("active %v", got)
		}
		w.roads[addr(1)] = &road{up: true, rtt: rtt}
		w.want()
		began, took := w.now, time.Duration(0)
		w.run(10*time.Second, func() {
			if took == 0 && w.set.Active() == addr(1) {
				took = w.now.Sub(began)
			}
		})
		if took == 0 || took > 3*time.Second {
			t.Errorf("RTT %v: direct after %v", rtt, took)
		}
	}
}

// TestABusyStartDoesNotKeepTheDetour: however late answers were while both machines were busy, on either way, the direct one
// is in use soon after they are no more.
func TestABusyStartDoesNotKeepTheDetour(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		w.set.WantMTU(1420)
		load := true
		late := func() time.Duration {
			if !load {
				return 0
			}
			return time.Duration(rapid.IntRange(0, 1900).Draw(t, "late")) * time.Millisecond
		}
		detour := rapid.SampledFrom([]Path{Through(relay1), Through(relay1, relay2), Stream(addr(3).Endpoint)}).Draw(t, "detour")
		w.roads[detour] = &road{up: true, rtt: time.Millisecond, late: late}
		w.want()
		w.set.Established(detour, w.now)
		w.busy = rapid.Bool().Draw(t, "busy")
		w.run(3*time.Second, nil)
		w.roads[addr(1)] = &road{up: true, rtt: time.Millisecond, late: late}
		w.set.Punch([]netip.AddrPort{addr(1).Endpoint}, w.now)
		w.run(time.Duration(rapid.IntRange(100, 5000).Draw(t, "pause"))*time.Millisecond, nil)
		load = false
		w.set.Punch([]netip.AddrPort{addr(1).Endpoint}, w.now)
		w.run(2*time.Second, nil) // what is under way
		began, took := w.now, time.Duration(-1)
		w.run(10*time.Second, func() {
			if took < 0 && w.set.Active() == addr(1) {
				took = w.now.Sub(began)
			}
		})
		if took < 0 || w.set.Active() != addr(1) {
			t.Fatalf("12 s after the machines are idle (taken after %v): %+v", took, w.set.Report(w.now))
		}
	})
}

// TestABadRelayIsLeft: one that is nearer than all others and drops what it carries, or a part of it because it has too much to
// carry, however quick its probes are.
func TestABadRelayIsLeft(t *testing.T) {
	for name, c := range map[string]struct {
		loss    float64
		arrives uint32 // of 100 packets a second
	}{
		"passes probes alone": {0, 0},
		"is overloaded":       {0.15, 85},
	} {
		w := newWorld(t)
		n := 0.0
		w.random = func() float64 { n += 0.37; return n - float64(int(n)) }
		w.roads[Through(relay1)] = &road{up: true, rtt: time.Millisecond, loss: c.loss}
		w.roads[Through(relay2)] = &road{up: true, rtt: 30 * time.Millisecond}
		w.want()
		w.set.Established(Through(relay1), w.now)
		took := time.Duration(0)
		for i := range 120 {
			w.run(time.Second, nil)
			if w.set.Active() == Through(relay2) {
				took = time.Duration(i+1) * time.Second
				break
			}
			w.set.Carried(100, c.arrives, w.now)
		}
		if took == 0 {
			t.Errorf("%s: %+v", name, w.set.Report(w.now))
		}
		t.Logf("a relay that %s was left after %v", name, took)
	}
}

// TestAStreamIsTakenBeforeARelayReachedByOne, however far the peer is.
func TestAStreamIsTakenBeforeARelayReachedByOne(t *testing.T) {
	for _, rtt := range []time.Duration{time.Millisecond, 20 * time.Millisecond, 100 * time.Millisecond, 400 * time.Millisecond} {
		w := newWorld(t)
		w.set.WantMTU(1420)
		w.roads[Through(relay1)] = &road{up: true, rtt: rtt}
		w.want()
		w.set.Streamed(func(p Path) bool { return p.Relayed() })
		w.set.Established(Through(relay1), w.now)
		w.run(10*time.Second, nil)
		w.roads[Stream(addr(1).Endpoint)] = &road{up: true, rtt: rtt}
		w.want()
		w.set.Streamed(func(p Path) bool { return p.Relayed() })
		w.run(20*time.Second, nil)
		if got := w.set.Active(); got != Stream(addr(1).Endpoint) {
			t.Errorf("RTT %v: %+v", rtt, w.set.Report(w.now))
		}
	}
}

// TestABrokenPathIsLeftSoon: another that works is used within two seconds of the cut.
func TestABrokenPathIsLeftSoon(t *testing.T) {
	for _, offset := range []time.Duration{0, 300 * time.Millisecond, 900 * time.Millisecond} {
		w := newWorld(t)
		w.set.WantMTU(1420)
		w.roads[addr(1)] = &road{up: true, rtt: 5 * time.Millisecond}
		w.roads[Through(relay1)] = &road{up: true, rtt: 20 * time.Millisecond}
		w.want()
		w.set.Established(addr(1), w.now)
		w.run(time.Minute+offset, nil)
		w.roads[addr(1)].up = false
		began, took := w.now, time.Duration(0)
		w.run(5*time.Second, func() {
			if took == 0 && w.set.Active() == Through(relay1) {
				took = w.now.Sub(began)
			}
		})
		if took == 0 || took > 2*time.Second {
			t.Errorf("left after %v", took)
		}
		w.roads[addr(1)].up = true
		w.run(31*time.Second, nil)
		if got := w.set.Active(); got != addr(1) {
			t.Errorf("not back: %v %+v", got, w.set.Report(w.now))
		}
	}
}

// TestAPathThatDropsBigPacketsIsLeft although its small probes are answered.
func TestAPathThatDropsBigPacketsIsLeft(t *testing.T) {
	w := newWorld(t)
	w.set.WantMTU(1420)
	w.roads[addr(1)] = &road{up: true, rtt: 5 * time.Millisecond}
	w.roads[addr(2)] = &road{up: true, rtt: 15 * time.Millisecond}
	w.want()
	w.set.Established(addr(1), w.now)
	w.run(time.Minute, nil)
	if w.set.Active() != addr(1) {
		t.Fatal("not on the better one")
	}
	w.roads[addr(1)].size = 500
	w.run(5*time.Second, nil)
	if got := w.set.Active(); got != addr(2) {
		t.Errorf("still on %v: %+v", got, w.set.Report(w.now))
	}
	w.run(5*time.Minute, func() {
		if w.set.Active() != addr(2) {
			t.Fatalf("back on %v", w.set.Active())
		}
	})
	w.roads[addr(1)].size = 0
	w.run(3*time.Minute, nil)
	if got := w.set.Active(); got != addr(1) {
		t.Errorf("not back on %v: %+v", got, w.set.Report(w.now))
	}
}

func TestTheOnlyWayIsKeptHoweverBad(t *testing.T) {
	w := newWorld(t)
	w.set.WantMTU(1420)
	w.roads[addr(1)] = &road{up: true, rtt: 5 * time.Millisecond, size: 900}
	w.want()
	w.set.Established(addr(1), w.now)
	w.run(time.Minute, func() {
		if w.set.Active() != addr(1) {
			t.Fatal("left the only way")
		}
	})
	if s := w.set.Silence(w.now); s >= LostAfter {
		t.Errorf("silent for %v", s)
	}
}

// TestAPeerThatMovesIsFollowed, and a path that was just left is not followed back by what is still under way.
func TestAPeerThatMovesIsFollowed(t *testing.T) {
	w := newWorld(t)
	w.roads[addr(1)] = &road{up: true, rtt: 5 * time.Millisecond}
	w.want()
	w.set.Established(addr(1), w.now)
	w.run(10*time.Second, nil)
	w.roads[addr(1)].up = false
	w.roads[addr(9)] = &road{up: true, rtt: 5 * time.Millisecond}
	if w.set.Heard(addr(9), true, w.now); w.set.Active() != addr(1) {
		t.Error("followed a probe that only tries a way")
	}
	if !w.set.Heard(addr(9), false, w.now) || w.set.Active() != addr(9) {
		t.Error("not followed")
	}
	w.run(3*time.Second, nil)
	if got := w.set.Report(w.now)[0]; got.State != Works || got.Path != addr(9) {
		t.Errorf("%+v", got)
	}

	// Somebody makes it look as if the peer had moved: nothing comes back from there.
	w.set.Heard(addr(66), false, w.now)
	w.run(3*time.Second, nil)
	if got := w.set.Active(); got != addr(9) {
		t.Errorf("still on %v, where nobody answers", got)
	}
	for range 100 {
		w.set.Heard(addr(66), false, w.now)
		if w.run(50*time.Millisecond, nil); w.set.Active() == addr(66) {
			t.Fatal("followed again at once")
		}
	}
}

func TestARelayThatIsGoneIsLeftAtOnce(t *testing.T) {
	w := newWorld(t)
	for _, id := range []peer.ID{relay1, relay2} {
		w.roads[Through(id)] = &road{up: true, rtt: 10 * time.Millisecond}
	}
	w.want()
	w.set.Established(Through(relay1), w.now)
	w.run(10*time.Second, nil)
	delete(w.roads, w.set.Active())
	w.want()
	if got := w.set.Active(); got.IsZero() || w.roads[got] == nil {
		t.Errorf("active %v", got)
	}
}

func TestARefusalIsBelieved(t *testing.T) {
	w := newWorld(t)
	for _, id := range []peer.ID{relay1, relay2} {
		w.roads[Through(id)] = &road{up: true, rtt: 10 * time.Millisecond}
	}
	w.want()
	w.set.Established(Through(relay1), w.now)
	w.run(10*time.Second, nil)
	w.roads[Through(relay1)].up = false
	w.set.Refused(relay1, "the relay does not reach the peer", w.now)
	if got := w.set.Active(); got != Through(relay2) {
		t.Errorf("active %v", got)
	}
	for _, r := range w.set.Report(w.now) {
		if r.Path == Through(relay1) && r.Reason != "the relay does not reach the peer" {
			t.Errorf("reason %q", r.Reason)
		}
	}
}

func TestMTUOfRelayedPaths(t *testing.T) {
	w := newWorld(t)
	w.set.WantMTU(1420)
	w.roads[Through(relay1)] = &road{up: true, rtt: 10 * time.Millisecond}
	w.want()
	w.set.Established(Through(relay1), w.now)
	if got := w.set.Report(w.now)[0].MTU; got != 1420-48 {
		t.Errorf("before it was measured: %d", got)
	}
	w.run(time.Second, nil)
	if got := w.set.Report(w.now)[0].MTU; got != 1420-48 {
		t.Errorf("%d", got)
	}
	w.set.WantMTU(1420 - 48) // as routes are made of what was reported
	if got := w.set.MTU(); got != 1420 {
		t.Errorf("what was reported came back as a wish for %d", got)
	}
}

func TestPunchTriesAtOnce(t *testing.T) {
	w := newWorld(t)
	w.roads[Through(relay1)] = &road{up: true, rtt: 10 * time.Millisecond}
	w.want()
	w.set.Established(Through(relay1), w.now)
	w.run(10*time.Second, nil)
	p := addr(7)
	w.roads[p] = &road{rtt: 10 * time.Millisecond}
	var at []time.Duration
	began, n := w.now, 0
	w.set.Punch([]netip.AddrPort{p.Endpoint}, w.now)
	w.run(time.Second, func() {
		if w.asked[p] > n {
			n = w.asked[p]
			at = append(at, w.now.Sub(began).Round(10*time.Millisecond))
		}
	})
	if n != len(Burst) {
		t.Errorf("%d probes, at %v", n, at)
	}
	w.roads[p].up = true
	w.set.Punch([]netip.AddrPort{p.Endpoint}, w.now)
	w.run(time.Second, nil)
	if w.set.Active() != p {
		t.Errorf("not taken: %+v", w.set.Report(w.now))
	}
}

// TestAnyNetwork: whatever happened before, once the network keeps still the one working way, or one of them, is in use,
// is not left again, and little is sent for it.
func TestAnyNetwork(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		w.random = func() float64 { return rapid.Float64Range(0, 1).Draw(t, "luck") }
		w.set.WantMTU(rapid.SampledFrom([]int{0, 1420, 8920}).Draw(t, "mtu"))
		all := []Path{addr(1), addr(2), addr(3), Through(relay1), Through(relay2), Through(relay1, relay2), Stream(addr(1).Endpoint)}
		change := func() {
			p := rapid.SampledFrom(all).Draw(t, "path")
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0:
				delete(w.roads, p)
				w.want()
			case 1:
				w.set.Heard(p, rapid.Bool().Draw(t, "test"), w.now)
			case 2:
				w.set.Punch([]netip.AddrPort{addr(rapid.IntRange(1, 40).Draw(t, "addr")).Endpoint}, w.now)
			case 3:
				w.set.Established(p, w.now)
			default:
				w.roads[p] = &road{
					up:   rapid.Bool().Draw(t, "up"),
					rtt:  time.Duration(rapid.IntRange(1, 300_000).Draw(t, "rtt")) * time.Microsecond,
					size: rapid.SampledFrom([]int{0, 1100, 1300}).Draw(t, "size"),
				}
				w.want()
			}
		}
		w.roads[all[0]] = &road{up: true, rtt: time.Millisecond}
		w.want()
		w.set.Established(all[0], w.now)
		for range rapid.IntRange(0, 20).Draw(t, "changes") {
			change()
			w.busy = rapid.Bool().Draw(t, "busy")
			w.run(time.Duration(rapid.IntRange(0, 20_000).Draw(t, "pause"))*time.Millisecond, nil)
			if n := len(w.set.ways); n > maxWays {
				t.Fatalf("%d ways", n)
			}
		}
		p := rapid.SampledFrom(all).Draw(t, "the way that works")
		if w.roads[p] == nil {
			w.roads[p] = &road{rtt: time.Millisecond}
		}
		w.roads[p].up, w.roads[p].size = true, 0
		w.busy = true
		w.want()
		w.run(40*time.Second, nil) // a dead way is tried every 30 s
		report := w.set.Report(w.now)[0]
		if !report.Active || report.State != Works {
			t.Fatalf("%v works, in use is %+v of %+v", p, report, w.set.Report(w.now))
		}
		w.run(returnAfter<<maxFalls, nil)
		moves := w.moves
		clear(w.asked)
		w.run(2*time.Minute, nil)
		if w.moves > moves+1 { // averages follow slowly
			t.Errorf("%d changes while nothing changed: %+v", w.moves-moves, w.set.Report(w.now))
		}
		for q, n := range w.asked {
			if limit := 2*60*3 + 3*25; n > limit { // one small and two large ones a second, and a search each minute, where packets travel in halves
				t.Errorf("%d probes on %v in two minutes", n, q)
			}
		}
	})
}

// TestLossIsPaidFor: a way that loses a tenth is left for one that is slower.
func TestLossIsPaidFor(t *testing.T) {
	w := newWorld(t)
	n := 0.0
	w.random = func() float64 { n += 0.37; return n - float64(int(n)) }
	w.roads[addr(1)] = &road{up: true, rtt: 5 * time.Millisecond, loss: 0.15}
	w.roads[addr(2)] = &road{up: true, rtt: 50 * time.Millisecond}
	w.want()
	w.set.Established(addr(1), w.now)
	w.run(10*time.Minute, nil)
	if got := w.set.Active(); got != addr(2) {
		t.Errorf("on %v: %+v", got, w.set.Report(w.now))
	}
}

func TestChains(t *testing.T) {
	ids := func(n ...byte) (out []peer.ID) {
		for _, i := range n {
			out = append(out, peer.ID{i})
		}
		return out
	}
	carries := func(id peer.ID) bool { return id[0] < 10 }
	for name, c := range map[string]struct {
		relays, known []peer.ID
		want          []Path
	}{
		"nobody":                 {},
		"none of ours":           {relays: ids(20), known: ids(21)},
		"ours, then theirs":      {relays: ids(20, 21), known: ids(1), want: []Path{Through(peer.ID{1}, peer.ID{20}), Through(peer.ID{1}, peer.ID{21})}},
		"each once":              {relays: ids(20), known: ids(1, 1, 20), want: []Path{Through(peer.ID{1}, peer.ID{20})}},
		"no second one of ours":  {relays: ids(1, 2), known: nil},
		"never more than enough": {relays: ids(20, 21, 22, 23), known: ids(1, 2, 3), want: Chains(ids(20, 21, 22, 23), ids(1), carries)},
	} {
		if got := Chains(c.relays, c.known, carries); !slices.Equal(got, c.want) || len(got) > maxChains {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestStateNames(t *testing.T) {
	seen := map[string]bool{}
	for s := range states + 1 {
		if n := s.String(); n == "" || seen[n] {
			t.Errorf("state %d is %q", s, n)
		} else {
			seen[n] = true
		}
	}
	for _, p := range []Path{{}, addr(1), Stream(addr(1).Endpoint), Through(relay1), Through(relay1, relay2)} {
		if n := fmt.Sprint(p); seen[n] {
			t.Errorf("%#v is %q", p, n)
		} else {
			seen[n] = true
		}
	}
}

// TestAPathThatDropsPacketsIsLeft although its probes are answered, whatever their size.
func TestAPathThatDropsPacketsIsLeft(t *testing.T) {
	w := newWorld(t)
	w.roads[addr(1)] = &road{up: true, rtt: 5 * time.Millisecond}
	w.roads[addr(2)] = &road{up: true, rtt: 15 * time.Millisecond}
	w.want()
	w.set.Established(addr(1), w.now)
	w.run(time.Minute, nil)
	for _, c := range []struct {
		sent, arrived uint32
		want          Path
	}{
		{1000, 990, addr(1)}, {1000, 0, addr(1)}, {1000, 9, addr(1)}, // once is nothing
		{5, 0, addr(1)}, {5, 0, addr(1)}, {5, 0, addr(1)}, // a few are nothing
		{1000, 0, addr(1)}, {1000, 0, addr(2)},
	} {
		w.set.Carried(c.sent, c.arrived, w.now)
		w.run(time.Second, nil)
		if got := w.set.Active(); got != c.want {
			t.Fatalf("%d of %d arrived: on %v, want %v", c.arrived, c.sent, got, c.want)
		}
	}
	w.run(30*time.Second, nil)
	if got := w.set.Active(); got != addr(2) {
		t.Errorf("back on %v at once", got)
	}
	w.run(5*time.Minute, nil)
	if got := w.set.Active(); got != addr(1) {
		t.Errorf("never tried again: %+v", w.set.Report(w.now))
	}
}
