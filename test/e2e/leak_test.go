package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
	"weft/test/netlab"
)

// The pools of stories that watch the cables before there is a cluster.
var (
	pool4 = netip.MustParsePrefix("10.32.0.0/12")
	pool6 = netip.MustParsePrefix("fd32:5eaf::/96")
)

// Captures on every cable see no packet with a pod's address in clear, whatever happens to daemons, data planes, paths and
// to what they keep in the kernel, while pods never stop talking.
func TestNothingLeavesInClear(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	watch := s.watch(pool4, pool6)
	s.form("--pool", pool4.String(), "--pool6", pool6.String())
	pods := s.pods()
	quiet := s.chatter(pods, s.sites.Internet.Addr4())
	defer quiet()

	step := func(name string, f func()) {
		t.Helper()
		f()
		began := time.Now()
		s.whole()
		s.connected(pods)
		s.took(name, began)
	}
	step("start and join", func() {})
	step("daemon killed", func() {
		s.must(s.a.Kill())
		s.must(s.a.Up())
	})
	step("wire killed", func() { s.must(s.b.KillWire(s.within(patience))) })
	step("daemon and wire killed", func() {
		s.must(s.c.Kill())
		s.must(s.c.KillWire(s.within(patience)))
		s.unanswered(pods[0], pods[2])
		s.must(s.c.Up())
	})
	step("path lost", func() {
		// TCP too, which carries tunnels where UDP does not pass.
		cut := s.sites.Router.Drop(netlab.Drop{Proto: "udp", Port: 6783}, netlab.Drop{Proto: "tcp", Port: 6783})
		_, err := s.a.WaitFor(s.within(patience), unreached(2))
		s.must(err)
		s.unanswered(pods[0], pods[1])
		cut.Heal()
	})
	step("unreachable routes deleted by hand", func() {
		if n := s.a.DeleteRoutes(); n == 0 {
			t.Error("there were no unreachable routes")
		}
	})
	step("stopped with weft down", func() {
		_, err := s.b.CLI("down")
		s.must(err)
		s.unanswered(pods[0], pods[1])
		s.must(s.b.Up())
	})
	step("left the cluster", func() {
		s.must(pods[2].Detach())
		_, err := s.c.CLI("leave")
		s.must(err)
		s.machines, pods = s.machines[:2], pods[:2]
	})
	// A flush of the ruleset takes the masquerading with it, until the daemon has noticed: nobody talks to the world then.
	quiet()
	quiet = s.chatter(pods)
	step("nftables flushed by hand", func() {
		if n := s.a.DeleteTables(); n == 0 {
			t.Error("there was no table")
		}
		s.must(cluster.Poll(s.within(patience), func() error {
			if len(s.a.Tables()) == 0 {
				return fmt.Errorf("the table is not back on %s", s.a)
			}
			return nil
		}))
	})
	quiet()
	s.sealed(watch)
}

// The sleeve's device is removed by hand: it comes back, and nothing leaves in clear meanwhile.
func TestSleeveDeviceDeletedByHandComesBack(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.machines = s.machines[:2]
	watch := s.watch(pool4, pool6)
	s.form("--pool", pool4.String(), "--pool6", pool6.String())
	pods := s.pods()
	s.connected(pods)
	quiet := s.chatter(pods, s.sites.Internet.Addr4())
	defer quiet()
	began := time.Now()
	s.a.DeleteLink("weft-sl")
	s.whole()
	s.connected(pods)
	s.took("weft-sl deleted by hand", began)
	s.sealed(watch)
}

// The captures that found nothing do find a leak: what a route around the tunnel lets out once nobody guards it, and what
// is sent in clear between the machines.
func TestPlantedLeakIsCaught(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.machines = s.machines[:2]
	s.form("--pool", pool4.String(), "--pool6", pool6.String())
	pods := s.pods()
	s.connected(pods)
	to := pods[1].Addrs[0]

	around := func() { s.a.Route(netip.PrefixFrom(to, 32), s.sites.Router.Addr4()) }
	guarded := s.watch(pool4, pool6)
	around()
	s.unanswered(pods[0], pods[1])
	s.must(s.a.WaitPing(s.within(patience), s.b.Addr4()))
	s.sealed(guarded)

	watch := s.watch(pool4, pool6)
	s.must(s.a.Kill()) // else it would put things right
	around()
	s.a.DeleteTables()
	s.unanswered(pods[0], pods[1])
	s.must(watch[0].WaitFor(s.within(patience), 1))

	inside := netlab.UDPPacket(netip.AddrPortFrom(pods[0].Addrs[0], 1), netip.AddrPortFrom(to, 2), []byte("in clear"))
	vxlan := append(append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, make([]byte, 12)...), 8, 0)
	s.must(s.sites.Router.SendUDP(s.a.AddrPort4(6785), s.b.AddrPort4(6785), append(vxlan, inside...)))
	s.must(watch[1].WaitFor(s.within(patience), 1))
	watch.Stop()
	s.must(watch.Err())
}

// chatter lets every pod ping every other, and what is outside, until the function that it returns is called.
func (s *story) chatter(pods []*cluster.Pod, outside ...netip.Addr) (quiet func()) {
	s.Helper()
	const longest = 5 * time.Minute
	var all []*netlab.Cmd
	for _, p := range pods {
		to := outside
		for _, q := range pods {
			if p != q {
				to = append(slices.Clip(to), q.Addrs...)
			}
		}
		for _, a := range to {
			c := p.Command(programs.Probe, "flood", "-rate", strconv.Itoa(50/netlab.Slow()), "-for", longest.String(), a.String()).Quiet()
			s.must(c.Start())
			all = append(all, c)
		}
	}
	return func() {
		for _, c := range all {
			c.Kill()
		}
	}
}

// unanswered checks that a pod does not reach another at all, and leaves its packets on the way meanwhile.
func (s *story) unanswered(from, to *cluster.Pod) {
	s.Helper()
	const tries = 200 * time.Millisecond
	ctx, cancel := context.WithTimeout(s.Context(), tries)
	defer cancel()
	if err := from.WaitPing(ctx, to.Addrs[0]); err == nil {
		s.Errorf("%s still reaches %s", from, to)
	}
}

// unreached wants so many peers without a path.
func unreached(n int) func(control.Status) error {
	return func(st control.Status) error {
		got := 0
		for _, p := range st.Peers {
			if p.Path == control.PathNone {
				got++
			}
		}
		if got < n {
			return fmt.Errorf("%d peers are unreached, not %d", got, n)
		}
		return nil
	}
}
