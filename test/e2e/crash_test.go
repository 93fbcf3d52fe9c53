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
		_, err = s.c.WaitReady(s.within(20*time.Second), 3)
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

// endOrReady waits until the trap has killed, or there is nothing left to be killed in.
func (s *story) endOrReady(m *cluster.Machine, trap *cluster.Trap) (killed bool) {
	s.Helper()
	_ = cluster.Poll(s.within(20*time.Second), func() error {
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

// used checks how often a token was used.
func (s *story) used(m *cluster.Machine, id string, want int) {
	s.Helper()
	var list control.Tokens
	s.must(m.JSON(&list, "token", "list"))
	for _, k := range list.Tokens {
		if k.ID == id && k.Used != want {
			s.Errorf("token %s was used %d times, want %d", id, k.Used, want)
		}
	}
}

// oneRing waits until machines agree who owns what, and checks that no block overlaps another.
func (s *story) oneRing(machines ...*cluster.Machine) {
	s.Helper()
	var blocks []control.Block
	s.must(cluster.Poll(s.within(15*time.Second), func() error {
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
