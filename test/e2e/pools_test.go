package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
)

// Two pools of different sizes are one space: a machine that has used up what it had of the one goes on with the other, pods
// of both reach each other, and none of it shows in clear.
func TestTwoPoolsOfDifferentSizes(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	small, large := netip.MustParsePrefix("10.9.0.0/28"), netip.MustParsePrefix("172.24.0.0/20")
	watched := s.watch(small, large)
	s.form("--pool", small.String()+","+large.String())
	pods := s.pods()
	// The founder's pods have come from the small pool up to here; what it keeps of it is used up, and then the other follows.
	for i := range 16 {
		p, err := s.a.Attach(fmt.Sprint("more", i))
		s.must(err)
		if pods = append(pods, p); large.Contains(p.Addrs[0]) {
			break
		}
	}
	of := func(pool netip.Prefix) int {
		return len(slices.DeleteFunc(slices.Clone(pods), func(p *cluster.Pod) bool { return !pool.Contains(p.Addrs[0]) }))
	}
	if of(small) == 0 || of(large) < 2 {
		t.Fatalf("%d pods in %s and %d in %s", of(small), small, of(large), large)
	}
	s.connected([]*cluster.Pod{pods[0], pods[1], pods[2], pods[len(pods)-1]})
	// One address of the larger pool by name, on the machine that owns it.
	p, err := s.a.Attach("named", "--ip", "172.24.0.77")
	s.must(err)
	s.connected([]*cluster.Pod{p, pods[1]})
	st, err := s.b.Status()
	s.must(err)
	if pools := fmt.Sprint(st.Cluster.Pools[:2]); pools != fmt.Sprintf("[%s %s]", small, large) {
		t.Errorf("status lists the pools %s", pools)
	}
	s.distinct()
	s.sealed(watched)
}

// A cluster of IPv6 alone: each machine has a range of networks of its own, pods have one address, nothing shows in clear, and
// a machine that speaks no IPv6 is told why it cannot take part.
func TestIPv6Alone(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	pool := netip.MustParsePrefix("fd77:1:2::/48")
	watched := s.watch(pool)
	token := s.form("--pool", "none", "--pool6", pool.String())
	pods := s.pods()
	for i, p := range pods {
		if len(p.Addrs) != 1 || !pool.Contains(p.Addrs[0]) {
			t.Errorf("the pod of %s has %v", s.machines[i], p.Addrs)
		}
		st, err := s.machines[i].Status()
		s.must(err)
		if len(st.IPAM.Blocks) != 1 || st.IPAM.Blocks[0].Bits() > 64 || len(st.Node.Overlay) != 1 {
			t.Errorf("%s owns %v and is %v", s.machines[i], st.IPAM.Blocks, st.Node.Overlay)
		}
	}
	s.connected(pods)
	for _, m := range s.machines[1:] {
		_, err := m.CLI("ping", "a", "-c", "1")
		s.must(err)
	}
	s.must(pods[0].WaitPing(s.within(patience), netip.MustParseAddr("2001:db8:ffff::10"))) // the world, by the host's address
	ring := s.a.Type("ip", "ring")
	if !strings.Contains(ring.Stdout, "fd77:1:2:8000::/") {
		t.Errorf("the ring is\n%s", ring.Stdout)
	}
	p, err := s.a.Attach("named", "--ip", "fd77:1:2:1::abc")
	s.must(err)
	s.connected([]*cluster.Pod{p, pods[2]})
	_, err = s.a.Attach("outside", "--ip", "10.32.0.9")
	s.refused(err, "10.32.0.9 is in none of the cluster's pools")
	s.distinct()

	// The daemon's death changes nothing, and its addresses are the same afterwards.
	s.must(s.b.Kill())
	s.must(pods[0].WaitPing(s.within(patience), pods[1].Addrs[0]))
	s.must(s.b.Up())
	_, err = s.b.WaitReady(s.within(startPatience), 3)
	s.must(err)
	was := pods[1].Addrs[0]
	s.must(pods[1].Attach())
	if pods[1].Addrs[0] != was {
		t.Errorf("%s became %s", was, pods[1].Addrs[0])
	}
	s.connected(pods)

	d := s.site("d")
	for _, k := range []string{"all", "default"} {
		d.Sysctl("net.ipv6.conf."+k+".disable_ipv6", "1")
	}
	s.must(d.Up())
	s.serving(d)
	_, err = d.CLI("join", token)
	s.refused(err, "IPv6 addresses alone, and this machine speaks no IPv6")
	s.sealed(watched)
}

// A cluster without IPv6 gives pods one address and leaves the IPv6 of the machine as it is.
func TestIPv4Alone(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.machines = s.machines[:2]
	s.form("--pool", "10.9.0.0/16", "--pool6", "none")
	pods := s.pods()
	for _, p := range pods {
		if len(p.Addrs) != 1 || !p.Addrs[0].Is4() {
			t.Errorf("a pod has %v", p.Addrs)
		}
	}
	s.connected(pods)
	for _, m := range s.machines {
		routes, err := m.Exec("ip", "-6", "route")
		s.must(err)
		if strings.Contains(routes, "weft") || strings.Contains(routes, "unreachable") {
			t.Errorf("%s has IPv6 routes\n%s", m, routes)
		}
	}
}

// Of fourteen addresses two machines have enough for a few pods. When they are used up whoever asks is told at once, both
// machines stay what they are, and a third one says what it waits for.
func TestATinyUniverse(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	r := s.a.Type("init", "--pool", "10.9.0.0/28", "--expect-nodes", "3")
	if want := "pool 10.9.0.0/28 is too small for 3 nodes"; r.Code == 0 || !strings.Contains(r.Words(), want) {
		t.Errorf("exit %d: %s", r.Code, r.Words())
	}
	c := s.c
	s.machines = s.machines[:2]
	token := s.form("--pool", "10.9.0.0/28", "--expect-nodes", "2")
	pods := s.pods()
	s.connected(pods)
	for _, m := range s.machines {
		s.fill(m)
	}
	for _, m := range s.machines {
		s.must(cluster.Poll(s.within(startPatience), func() error { // a loaded machine may not answer in time once
			begin := time.Now()
			r := m.Type("ip", "claim")
			took := time.Since(begin)
			t.Logf("%s says after %.1f s: %s", m, took.Seconds(), r.Words())
			if r.Code == 0 || !strings.Contains(r.Words(), "no peer can lend in 10.9.0.0/28: 1 full") {
				return fmt.Errorf("%s says after %s: exit %d, %s", m, took, r.Code, r.Words())
			}
			return nil
		}))
		_, err := m.WaitFor(s.within(patience), func(st control.Status) error {
			if st.Node.State != control.NodeReady || st.IPAM.Free != 0 || !strings.Contains(st.Node.Reason, "1 full") {
				return fmt.Errorf("%s, which has no address left, is %s: %s", m, st.Node.State, st.Node.Reason)
			}
			return nil
		})
		s.must(err)
	}
	s.connected(pods)
	s.must(c.Up("--join", token))
	_, err := c.WaitFor(s.within(patience), func(st control.Status) error {
		if st.Node.State != control.NodeJoining || !strings.Contains(st.Node.Reason, "2 full") {
			return fmt.Errorf("%s: %s", st.Node.State, st.Node.Reason)
		}
		return nil
	})
	s.must(err)
	s.distinctRings()
}
