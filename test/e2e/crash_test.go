package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
)

// maxPoints ends a search for the last point of something that does not end.
const maxPoints = 80

// The joiner is killed before each thing that it makes last, and started again: it gets in, with one use of its token, and
// nothing is given twice.
func TestJoinerKilledAtEachStep(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.machines = s.machines[:2]
	s.form()
	hit, points := true, 0
	for n := 1; hit && n < maxPoints; n++ {
		token, id := s.create(s.a, "--ephemeral")
		trap, err := s.c.Trap(n, cluster.Durable, "--join", token)
		s.must(err)
		hit = s.endOrReady(s.c, trap)
		if hit {
			points++
			s.must(s.c.Up("--join", token))
		}
		_, err = s.c.WaitReady(s.within(startPatience), 3)
		if err != nil {
			t.Fatalf("killed before point %d: %v", n, err)
		}
		s.used(s.a, id, 1)
		s.oneRing(s.a, s.b, s.c)
		_, err = s.c.CLI("leave", "--purge")
		s.must(err)
	}
	t.Logf("killed at %d points", points)
	if points < 5 {
		t.Errorf("only %d points: does the trap work?", points)
	}
	s.whole()
}

// The sponsor, who is also the one that lends space, is killed before each thing that it makes last while it admits a
// machine, and started again: the machine gets in, and nothing is given twice.
func TestSponsorKilledAtEachStep(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.machines = s.machines[:2]
	s.form()
	s.must(s.a.Stop())
	trap, err := s.a.Trap(0, nil)
	s.must(err)
	s.whole()
	hit, points := true, 0
	var slowest time.Duration
	for n := 1; hit && n < maxPoints; n++ {
		token, id := s.create(s.a, "--ephemeral")
		trap.Arm(n, cluster.Written)
		s.must(s.c.Up("--join", token))
		hit = s.endOrReady(s.a, trap)
		if hit {
			points++
			trap, err = s.a.Trap(0, nil)
			s.must(err)
		}
		began := time.Now()
		for _, m := range []*cluster.Machine{s.a, s.b, s.c} {
			if _, err = m.WaitReady(s.within(startPatience), 3); err != nil {
				t.Fatalf("killed before point %d: %v", n, err)
			}
		}
		t.Logf("point %d: whole after %v", n, time.Since(began))
		slowest = max(slowest, time.Since(began))
		s.used(s.a, id, 1)
		s.oneRing(s.a, s.b, s.c)
		_, err = s.c.CLI("leave", "--purge")
		s.must(err)
	}
	t.Logf("killed at %d points, whole again after %.1f s at most", points, slowest.Seconds())
	if points < 3 {
		t.Errorf("only %d points: does the trap work?", points)
	}
	s.whole()
}

// The daemon is killed before each thing that it makes last, and each message to the kernel, while it attaches a pod, and
// started again: the pod is attached once, with one address, and talks.
func TestDaemonKilledAtEachStepOfAttach(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.machines = s.machines[:2]
	s.form()
	far, err := s.b.Attach("far")
	s.must(err)
	s.must(s.a.Stop())
	trap, err := s.a.Trap(0, nil)
	s.must(err)
	s.whole()
	points, tries := 0, 0
	step := func(n int, kinds []int32) (hit bool) {
		t.Helper()
		tries++
		p := &cluster.Pod{Host: s.a.Pod(fmt.Sprint("try", tries)), Machine: s.a}
		trap.Arm(n, kinds)
		err := p.Attach()
		if hit = trap.Disarm(); !hit {
			s.must(err)
		} else {
			points++
			<-s.a.Daemon.Done()
			trap, err = s.a.Trap(0, nil)
			s.must(err)
			// Whoever asked asks again, as a container runtime does.
			s.must(cluster.Poll(s.within(patience), func() error { return p.Attach() }))
		}
		once := fmt.Sprint(p.Addrs)
		s.must(p.Attach())
		if now := fmt.Sprint(p.Addrs); now != once {
			t.Errorf("killed before point %d: %s had %s and has %s", n, p, once, now)
		}
		if err := p.WaitPing(s.within(patience), far.Addrs[0]); err != nil {
			t.Errorf("killed before point %d: %v", n, err)
		}
		s.distinct()
		s.must(p.Detach())
		return hit
	}
	for n := 1; n < maxPoints && step(n, cluster.Durable); n++ {
	}
	// Between two of these lie messages to the kernel, of several requests each.
	for n := 1; n < maxPoints && step(n, cluster.Netlink); n++ {
	}
	t.Logf("killed at %d points", points)
	var list control.Claims
	s.must(s.a.JSON(&list, "ip", "list"))
	if len(list.Claims) > 0 || points < 5 {
		t.Errorf("after %d points left: %v", points, list.Claims)
	}
}

// endOrReady waits until the trap has killed, or there is nothing left to be killed in.
func (s *story) endOrReady(m *cluster.Machine, trap *cluster.Trap) (killed bool) {
	s.Helper()
	_ = cluster.Poll(s.within(startPatience), func() error {
		select {
		case <-m.Daemon.Done():
			return nil
		default:
		}
		_, err := m.WaitReady(s.within(200*time.Millisecond), 3)
		return err
	})
	killed = trap.Disarm()
	if killed {
		<-m.Daemon.Done()
	}
	return killed
}

// used waits until a machine knows how often a token was used, and checks that it was not more.
func (s *story) used(m *cluster.Machine, id string, want int) {
	s.Helper()
	s.must(cluster.Poll(s.within(patience), func() error {
		var list control.Tokens
		if err := m.JSON(&list, "token", "list"); err != nil {
			return err
		}
		for _, k := range list.Tokens {
			if k.ID == id && k.Used != want {
				return fmt.Errorf("token %s was used %d times, want %d", id, k.Used, want)
			}
		}
		return nil
	}))
}

// oneRing waits until machines agree who owns what, and checks that no block overlaps another.
func (s *story) oneRing(machines ...*cluster.Machine) {
	s.Helper()
	var blocks []control.Block
	s.must(cluster.Poll(s.within(patience), func() error {
		var first string
		for i, m := range machines {
			var ring control.Ring
			if err := m.JSON(&ring, "ip", "ring"); err != nil {
				return err
			}
			var owners [][2]string
			for _, b := range ring.Blocks {
				owners = append(owners, [2]string{b.Prefix.String(), b.Owner})
			}
			blocks = ring.Blocks
			if now := fmt.Sprint(owners); i == 0 {
				first = now
			} else if now != first {
				return fmt.Errorf("%s sees %s, %s sees %s", machines[0], first, m, now)
			}
		}
		return nil
	}))
	var all []netip.Prefix
	for _, b := range blocks {
		if slices.ContainsFunc(all, b.Prefix.Overlaps) {
			s.Errorf("%s overlaps another block", b.Prefix)
		}
		all = append(all, b.Prefix)
	}
}
