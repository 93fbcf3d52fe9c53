package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft/router/host"
	"weft/test/cluster"
	"weft/test/netlab"
)

// way is one transport to tell a story with.
type way struct {
	name, device string
	args         []string
	port         uint16 // of its own, which can be shut without shutting the sleeve's; 0: none
}

func ways() []way {
	return []way{
		{"sleeve", "weft-sl", []string{"--transport", "sleeve"}, 0},
		{"vxlan", "weft-vx", []string{"--transport", "vxlan,sleeve", "--trusted-subnets", "198.18.0.0/16"}, 6785},
		{"vxlan6", "weft-vx6", []string{"--transport", "vxlan6,sleeve", "--trusted-subnets", "2001:db8::/32"}, 6785},
		{"wireguard", "weft-wg", []string{"--transport", "wireguard,sleeve"}, 6784},
		{"wireguard-user", "weft-wu", []string{"--transport", "wireguard-user,sleeve"}, 0},
	}
}

// each tells a story of two machines with every transport that this kernel has.
func each(t *testing.T, play func(s *story, w way)) {
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			if w.name == "wireguard" {
				needWireGuard(t)
			}
			t.Parallel() // it mostly waits
			s := tell(t)
			s.machines = s.machines[:2]
			play(s, w)
		})
	}
}

// long skips a story that takes minutes; make test-long tells it.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("WEFT_TEST_LONG") == "" {
		t.Skip("it takes minutes. Set WEFT_TEST_LONG=1, or run: make test-long")
	}
}

// by waits until both machines reach each other by the transport.
func (s *story) by(transport string) {
	s.Helper()
	s.carried(s.a, s.b, transport)
	s.carried(s.b, s.a, transport)
}

// outer chooses packets whose own addresses, not those of what they carry, are as asked: for transports that do not encrypt.
func outer(choose func(h netlab.Header) bool) netlab.CaptureOptions {
	return netlab.CaptureOptions{Keep: 1 << 16, Match: func(p *netlab.Packet) bool {
		h, ok := p.IP()
		return ok && choose(h)
	}}
}

// Whatever befalls a machine, with any transport, no packet to a pod's address is ever on a cable outside of its tunnel, and
// none with a pod's address as its source but in the moment that follows the flush of all firewall rules by hand.
func TestNoTransportLeaks(t *testing.T) {
	each(t, func(s *story, w way) {
		inPools := func(a netip.Addr) bool { return pool4.Contains(a) || pool6.Contains(a) }
		world := []netip.Addr{s.sites.Internet.Addr4(), s.sites.Internet.Addr6()} // which answers to whatever address it is asked from
		to := s.lab.CaptureAll(outer(func(h netlab.Header) bool { return inPools(h.Dst) && !slices.Contains(world, h.Src) }))
		from := s.lab.CaptureAll(outer(func(h netlab.Header) bool { return inPools(h.Src) }))
		s.form(append(w.args, "--pool", pool4.String(), "--pool6", pool6.String())...)
		pods := s.pods()
		s.by(w.name)
		quiet := s.chatter(pods, world...)
		defer quiet()

		step := func(what string, do func()) {
			s.Helper()
			began := time.Now()
			do()
			s.connected(pods)
			s.took(what, began)
		}
		step("start and join", func() {})
		if w.port != 0 {
			step("switch to the sleeve", func() {
				cut := s.sites.Router.BlockUDP(w.port)
				s.by("sleeve")
				cut.Heal()
			})
		}
		step("daemon killed", func() {
			s.must(s.a.Kill())
			s.must(s.a.Up(w.args...))
			s.whole()
		})
		step("wire killed", func() { s.must(s.b.KillWire(s.within(patience))) })
		step("daemon and wire killed: new secrets, new sessions", func() {
			s.must(cluster.Poll(s.within(patience), func() error { // the kernel carries without one, so the last step was soon over
				if s.b.Wire() == 0 {
					return fmt.Errorf("no wire runs on %s again", s.b)
				}
				return nil
			}))
			s.must(s.b.Kill())
			s.must(s.b.KillWire(s.within(patience)))
			s.must(s.b.Up(w.args...))
			s.whole()
		})
		step("back on "+w.name, func() { s.by(w.name) })
		step("device deleted by hand", func() {
			s.a.DeleteLink(w.device)
			s.must(cluster.Poll(s.within(patience), func() error {
				if !slices.Contains(s.a.Devices(), w.device) {
					return fmt.Errorf("%s is not back", w.device)
				}
				return nil
			}))
		})
		if n := from.Count(); n > 0 {
			s.Errorf("%d packets from pods' addresses in clear:\n%s", n, from.Describe(10))
		}

		var flushed time.Time
		step("ruleset flushed by hand", func() {
			flood := pods[0].Command(programs.Probe, "flood", "-rate", strconv.Itoa(1000/netlab.Slow()), "-for", "1m", world[0].String()).Quiet()
			s.must(flood.Start())
			defer flood.Kill()
			s.must(pods[0].WaitPing(s.within(patience), world[0]))
			flushed = time.Now()
			if n := s.a.DeleteTables(); n == 0 {
				s.Error("there was no table")
			}
			s.must(cluster.Poll(s.within(patience), func() error {
				if !slices.Contains(s.a.Tables(), host.Table) {
					return fmt.Errorf("the table is not back on %s", s.a)
				}
				return nil
			}))
			// What is answered from the world was masqueraded.
			s.must(pods[0].WaitPing(s.within(patience), world[0]))
		})
		quiet()
		for _, c := range []netlab.Captures{to, from} {
			c.Stop()
			s.must(c.Err())
			if c.Seen() == 0 {
				s.Error("the captures saw nothing at all")
			}
		}
		if n := to.Count(); n > 0 {
			s.Errorf("%d packets to pods' addresses in clear:\n%s", n, to.Describe(10))
		}
		var last time.Duration
		for _, p := range from.Packets() {
			last = max(last, p.Time.Sub(flushed))
		}
		s.Logf("after the flush %d packets to the world carried pods' addresses, the last one after %s (bar: 100 ms)",
			from.Count(), last.Round(time.Millisecond))
		if last > 10*time.Second {
			s.Error("the guard came back, but packets pass it:", strings.TrimSpace(from.Describe(10)))
		}
	})
}
