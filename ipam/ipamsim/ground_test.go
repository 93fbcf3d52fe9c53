package ipamsim_test

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam"
	"weft/ipam/ipamsim"
	"weft/mesh/peer"
)

// ground is a World with words that stories need.
type ground struct {
	*ipamsim.World
	t *testing.T
}

// story plays in a World with a founder and some voters beside it, and makes all well in the end.
func story(t *testing.T, voters int, s ipamsim.Setup, play func(g *ground)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		if testing.Verbose() && !*full { // of crowds only the figures are of interest
			s.Log = t.Logf
		}
		w, err := ipamsim.New(s)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		g := &ground{w, t}
		for range voters {
			g.grow(true)
		}
		play(g)
		if w.Err() == nil && !t.Failed() {
			w.Fate = nil
			w.Recover()
		}
		if err := w.Err(); err != nil {
			t.Error(err)
		}
	})
}

func (g *ground) n(i int) *ipamsim.Machine { return g.Machines()[i] }

// grow lets one more machine join by the founder, and waits until it has an address.
func (g *ground) grow(voter bool) *ipamsim.Machine {
	g.t.Helper()
	m := g.Join(g.n(0), voter, nil)
	g.wait("a machine joins", 20*time.Second, func() bool { return ready(m) })
	g.Run(3 * time.Second) // all know
	return m
}

func ready(m *ipamsim.Machine) bool {
	return m.Up() != nil && m.Up().Status().State == ipam.StateReady
}

// wait fails the test when something does not come in time.
func (g *ground) wait(what string, most time.Duration, done func() bool) {
	g.t.Helper()
	if !g.Until(most, done) {
		g.t.Fatalf("%s: not within %s; %v", what, most, g.Err())
	}
}

// owner is who owns an address in a machine's eyes.
func owner(in *ipamsim.Machine, addr netip.Addr) peer.ID {
	for _, r := range in.Up().Runs() {
		if r.Block.Contains(addr) {
			return r.Owner
		}
	}
	return peer.ID{}
}

// blocks is what of owns in a machine's eyes.
func blocks(in, of *ipamsim.Machine) (all []netip.Prefix) {
	for _, r := range in.Up().Runs() {
		if r.Owner == of.ID() {
			all = append(all, r.Block)
		}
	}
	return all
}

// gone reports whether all others have taken over what a machine had.
func (g *ground) gone(victims ...*ipamsim.Machine) bool {
	for _, m := range g.Machines() {
		if m.Up() == nil || slices.Contains(victims, m) || m.Up().Status().State == ipam.StateRemoved {
			continue
		}
		fenced := m.Up().Fenced()
		for _, v := range victims {
			if len(blocks(m, v)) > 0 || !fenced.Has(v.ID()) {
				return false
			}
		}
	}
	return true
}

// claim waits for an address, the zero one when there is none.
func (g *ground) claim(m *ipamsim.Machine, container string) (addr netip.Addr, err error) {
	answered := false
	g.Claim(m, container, netip.Addr{}, func(a netip.Addr, e error) { addr, err, answered = a, e, true })
	g.Until(10*time.Second, func() bool { return answered })
	return addr, err
}

func (g *ground) mustClaim(m *ipamsim.Machine, container string) netip.Addr {
	g.t.Helper()
	addr, err := g.claim(m, container)
	if err != nil {
		g.t.Fatalf("%s: no address for %s: %v; %v", m, container, err, g.Err())
	}
	return addr
}

// kinds of messages.
const (
	askSync       = "ipam.sync"
	askGrant      = "ipam.grant"
	askPromise    = "ipam.promise"
	answerGrant   = "answer ipam.grant"
	answerPromise = "answer ipam.promise"
	state         = "state"
	digest        = "digest"
)
