package ipamsim

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam"
)

// Result is what came of a plan.
type Result struct {
	Err    error // the rule that was broken first
	Hash   uint64
	Counts Counts
	Took   time.Duration // of the World's time
}

// Options change how a plan is played.
type Options struct {
	Configure func(*ipam.Config)               // as in Setup
	Lone      bool                             // as in Setup
	Later     time.Duration                    // how long after the bubble's first moment the life begins
	Log       func(format string, args ...any) // every step and message of the allocators; nil for silence
}

// Play plays a plan in a bubble of its own, makes all well in the end, and says what came of it.
func Play(t *testing.T, p Plan, o Options) (r Result) {
	synctest.Test(t, func(*testing.T) {
		<-time.After(o.Later)
		w, err := New(Setup{
			Seed: p.Seed, Prefix: p.pool(), Strict: p.Strict, Weather: p.Weather, Gossip: p.Gossip,
			Configure: o.Configure, Lone: o.Lone, Log: o.Log,
		})
		if err != nil {
			r.Err = err
			return
		}
		defer w.Close()
		for _, s := range p.Steps {
			w.Run(s.After)
			if w.Err() != nil {
				break
			}
			w.do(s)
		}
		if w.Err() == nil {
			w.Recover()
		}
		r = Result{w.Err(), w.Hash(), w.Counts(), w.Now()}
	})
	return r
}

// pool is what the plan's cluster gives addresses of.
func (p Plan) pool() netip.Prefix {
	if p.Bits > 32 {
		return netip.PrefixFrom(netip.MustParseAddr("fd00::"), p.Bits)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10}), p.Bits)
}

// any chooses a machine for a step: a member that may come back, if there is one.
func (w *World) any(i int) *Machine {
	var can []*Machine
	for _, m := range w.machines {
		if m.member && !m.retired {
			can = append(can, m)
		}
	}
	if len(can) == 0 {
		return w.machines[0]
	}
	return can[i%len(can)]
}

// up chooses a machine that is up, nil when none is.
func (w *World) up(i int, fit func(*Machine) bool) *Machine {
	var can []*Machine
	for _, m := range w.machines {
		if m.now != nil && (fit == nil || fit(m)) {
			can = append(can, m)
		}
	}
	if len(can) == 0 {
		return nil
	}
	return can[i%len(can)]
}

func (w *World) do(s Step) {
	m := w.any(s.A)
	if s.Verb == DoClock {
		w.SetClock(m, time.Duration(s.N-128)*12*time.Minute) // no part of the hash: nothing may come of it
		return
	}
	w.note(s.A, s.B, string(s.Verb))
	switch s.Verb {
	case DoJoin:
		if len(w.machines) < 2*manyMachines {
			if sponsor := w.up(s.A, nil); sponsor != nil {
				w.Join(sponsor, s.N%2 == 0, nil)
			}
		}
	case DoClaim:
		if m = w.up(s.A, nil); m != nil {
			w.Claim(m, fmt.Sprintf("c%d", s.N%12), netip.Addr{}, nil)
		}
	case DoClaimAt:
		if m = w.up(s.A, nil); m != nil {
			if blocks := m.now.alloc.Status().Blocks; len(blocks) > 0 {
				b := blocks[s.B%len(blocks)]
				addr := b.Addr()
				for range s.N % (1 << (addr.BitLen() - b.Bits())) {
					addr = addr.Next()
				}
				w.Claim(m, addr.String(), addr, nil)
			}
		}
	case DoRelease:
		if m = w.up(s.A, nil); m != nil {
			w.Release(m, fmt.Sprintf("c%d", s.N%12))
		}
	case DoKill:
		w.Kill(m)
	case DoStop:
		w.Stop(m)
	case DoStart:
		w.startAny(s.A)
	case DoStartAll:
		w.startAll()
	case DoRestart:
		w.Stop(m)
		w.Start(m)
	case DoTrap:
		w.Trap(m, 1+s.N>>1%4, s.N&1 == 1, true)
	case DoFail:
		w.Trap(m, 1+s.N>>1%4, s.N&1 == 1, false)
		w.Fill(m, s.N>>3%8)
	case DoWipe:
		if w.canSpare(m) {
			w.logf("%s loses its disk", m)
			w.Retire(m)
		}
	case DoSave:
		w.Save(m)
	case DoSetBack:
		if w.canSpare(m) {
			w.SetBack(m)
			w.Start(m)
		}
	case DoCopy:
		if w.canSpare(m) {
			if c := w.Copy(m); c != nil {
				w.Start(c)
			}
		}
	case DoLeave:
		if m.now != nil && w.canSpare(m) {
			for i, container := range slices.Sorted(maps.Keys(m.Told)) { // two at once may come in either order
				w.after(time.Duration(i)*time.Millisecond, func() { w.Release(m, container) })
			}
			w.after(time.Second, func() { w.Leave(m) })
		}
	case DoRemove, DoSilence, DoSteal, DoForce:
		w.doRemoval(s)
	case DoPart:
		var side []*Machine
		for i, m := range w.machines {
			if s.N>>(i%8)&1 == 1 {
				side = append(side, m)
			}
		}
		w.logf("parted: %v", side)
		w.Part(side)
	case DoCut:
		if b := w.any(s.B); b != m {
			w.logf("cut: %s -> %s", m, b)
			w.Cut(m, b)
		}
	case DoHeal:
		w.logf("healed")
		w.Heal()
	}
}

// startAny starts a machine that is down.
func (w *World) startAny(i int) {
	var down []*Machine
	for _, m := range w.machines {
		if m.member && !m.retired && m.now == nil {
			down = append(down, m)
		}
	}
	if len(down) > 0 {
		w.logf("%s starts", down[i%len(down)])
		w.Start(down[i%len(down)])
	}
}

// startAll starts all that are down, one after the other: whoever runs looks at once who is up.
func (w *World) startAll() {
	for _, m := range w.machines {
		w.Start(m)
		w.settle()
	}
}

// Text is a result in one line.
func (r Result) Text() string {
	state := "holds"
	if r.Err != nil {
		state = r.Err.Error()
	}
	return fmt.Sprintf("%s; %d events, %d messages, %d claims, %d joins, %d removals in %s, hash %016x", state, r.Counts.Events,
		r.Counts.Messages, r.Counts.Claims, r.Counts.Joins, r.Counts.Removals, r.Took.Round(time.Second), r.Hash)
}

// broken is the name of the rule in an error: what stands before the colon.
func broken(err error) string {
	if err == nil {
		return ""
	}
	name, _, _ := strings.Cut(err.Error(), ":")
	return name
}
