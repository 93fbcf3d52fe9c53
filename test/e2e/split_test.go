package e2e

import (
	"net/netip"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/netlab"
)

// pools are those of the cluster that was formed.
func (s *story) pools() []netip.Prefix {
	s.Helper()
	st, err := s.machines[0].Status()
	s.must(err)
	return st.Cluster.Pools
}

// A cut of 20 s between one machine and the others: pods are attached on both sides meanwhile, the halves find each other
// by themselves within 30 s of the cut's end, and no address was given twice.
func TestSplitHealsByItself(t *testing.T) {
	s := tell(t)
	s.form()
	pods := s.pods()
	s.connected(pods)
	watch := s.watch(s.pools()...)

	cut := s.lab.Partition([]*netlab.Host{s.a.Host}, []*netlab.Host{s.b.Host, s.c.Host})
	end := time.Now().Add(20 * time.Second)
	_, err := s.a.WaitFor(s.within(30*time.Second), func(st control.Status) error { return away(st, 2) })
	s.must(err)
	for _, m := range s.machines {
		p, err := m.Attach("split")
		s.must(err)
		pods = append(pods, p)
	}
	s.distinct()
	s.must(pods[1].WaitPing(s.within(5*time.Second), pods[2].Addrs[0])) // b and c still have each other
	<-time.After(time.Until(end))

	cut.Heal()
	healed := time.Now()
	s.whole()
	s.connected(pods)
	took := time.Since(healed)
	t.Logf("healed %.1f s after the end of the cut", took.Seconds())
	if took > 30*time.Second {
		s.Errorf("took %v", took)
	}
	s.distinct()
	s.sealed(watch)
}

// away checks that so many members are known and not alive.
func away(st control.Status, n int) error {
	if got := st.Cluster.Members - st.Cluster.Alive; got < n {
		return errAway(got)
	}
	return nil
}

type errAway int

func (e errAway) Error() string { return "only so many are away: " + string(rune('0'+int(e))) }
