package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
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
	t.Parallel() // it mostly waits
	s := tell(t)
	s.form()
	pods := s.pods()
	s.connected(pods)
	watch := s.watch(s.pools()...)

	cut := s.lab.Partition([]*netlab.Host{s.a.Host}, []*netlab.Host{s.b.Host, s.c.Host})
	end := time.Now().Add(20 * time.Second)
	_, err := s.a.WaitFor(s.within(patience), func(st control.Status) error { return away(st, 2) })
	s.must(err)
	for _, m := range s.machines {
		p, err := m.Attach("split")
		s.must(err)
		pods = append(pods, p)
	}
	s.distinct()
	s.must(pods[1].WaitPing(s.within(patience), pods[2].Addrs[0])) // b and c still have each other
	<-time.After(time.Until(end))

	cut.Heal()
	healed := time.Now()
	s.whole()
	s.connected(pods)
	t.Logf("healed %.1f s after the end of the cut (bar: 30 s)", time.Since(healed).Seconds())
	s.distinct()
	s.sealed(watch)
}

// What one machine sends to another is lost, and nothing else: the third carries for both, and they go straight again when
// the cut has ended.
func TestOneWayCutHealsByItself(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.form()
	pods := s.pods()
	s.connected(pods)
	watch := s.watch(s.pools()...)

	cut := s.lab.PartitionOneWay([]*netlab.Host{s.a.Host}, []*netlab.Host{s.b.Host})
	began := time.Now()
	through := func(path string) {
		t.Helper()
		for m, other := range map[*cluster.Machine]string{s.a: "b", s.b: "a"} {
			err := cluster.Poll(s.within(3*time.Minute), func() error { // who had to leave a way does not hurry back
				st, err := m.Status()
				if p := peerOf(st, other); err == nil && p.Path != path {
					err = fmt.Errorf("%s reaches %s by path %q (%s)", m, other, p.Path, p.Reason)
				}
				return err
			})
			if err != nil {
				r := m.Type("doctor", other)
				s.Logf("weft doctor %s on %s:\n%s%s", other, m, r.Stdout, r.Stderr)
			}
			s.must(err)
		}
	}
	s.must(pods[0].WaitPing(s.within(patience), pods[1].Addrs[0]))
	through(control.PathRelay)
	s.took("one-way cut, through the third", began)
	s.must(pods[0].WaitPing(s.within(patience), pods[2].Addrs[0]))
	s.must(pods[1].WaitPing(s.within(patience), pods[2].Addrs[0]))
	for _, m := range s.machines {
		p, err := m.Attach("one-way")
		s.must(err)
		pods = append(pods, p)
	}
	s.distinct()

	cut.Heal()
	began = time.Now()
	s.whole()
	s.connected(pods)
	through(control.PathDirect)
	s.took("one-way cut, straight again", began)
	s.sealed(watch)
}

// Every cable is pulled: machines without any network keep serving their own pods, and find each other when it is back.
func TestAllCablesPulled(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.form()
	pods := s.pods()
	s.connected(pods)

	for _, k := range s.sites.Links() {
		k.Down()
	}
	for _, m := range s.machines {
		_, err := m.WaitFor(s.within(patience), unreached(2))
		s.must(err)
	}
	for i, m := range s.machines {
		p, err := m.Attach("alone")
		s.must(err)
		s.must(p.WaitPing(s.within(patience), pods[i].Addrs[0]))
		pods = append(pods, p)
	}
	// One of them is even started anew like this, daemon and wire.
	s.must(s.b.Kill())
	s.must(s.b.KillWire(s.within(patience)))
	s.must(s.b.Up())
	p, err := s.attachSoon(s.b, "anew")
	s.must(err)
	pods = append(pods, p)
	s.distinct()

	for _, k := range s.sites.Links() {
		k.Up()
	}
	began := time.Now()
	s.whole()
	s.connected(pods)
	s.took("all cables pulled (bar: 30 s)", began)
	s.distinct()
}

// attachSoon attaches as soon as the daemon, which has just started, lets it.
func (s *story) attachSoon(m *cluster.Machine, name string) (p *cluster.Pod, err error) {
	s.Helper()
	began := time.Now()
	p = &cluster.Pod{Host: m.Pod(name), Machine: m}
	err = cluster.Poll(s.within(patience), func() error { return p.Attach() })
	s.Logf("%s attached %.1f s after the start", p, time.Since(began).Seconds())
	return p, err
}

// away checks that so many members are known and not alive.
func away(st control.Status, n int) error {
	if got := st.Cluster.Members - st.Cluster.Alive; got < n {
		return fmt.Errorf("only %d members are away", got)
	}
	return nil
}
