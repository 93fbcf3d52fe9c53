package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
)

// A pool of 64 addresses, cut in 16 blocks, is used up: by one machine while another one that has space is cut off, and then
// by all. Each time whoever asks is told why there is no address, by name, in time.
func TestTheLastAddress(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.form("--pool", "10.9.0.0/26")
	// Each machine has space of its own before anything is needed.
	for _, m := range s.machines {
		s.must(cluster.Poll(s.within(patience), func() error {
			if st, err := m.Status(); err != nil || st.IPAM.Free < 2 {
				return fmt.Errorf("%s has %d addresses: %w", m, st.IPAM.Free, err)
			}
			return nil
		}))
	}
	cut := s.lab.Partition(s.sites.Hosts()[:2], s.sites.Hosts()[2:])
	for _, m := range s.machines[:2] {
		_, err := m.WaitFor(s.within(startPatience), func(st control.Status) error {
			if st.Cluster.Alive != 2 {
				return fmt.Errorf("%d alive", st.Cluster.Alive)
			}
			return nil
		})
		s.must(err)
	}
	s.must(cluster.Poll(s.within(startPatience), func() error { // a loaded machine may not answer in time once
		words := s.fill(s.a)
		if !strings.Contains(words, "no peer can lend in 10.9.0.0/26: 1 unreachable (c)") || !strings.Contains(words, "1 full") {
			return fmt.Errorf("a says: %s", words)
		}
		return nil
	}))

	cut.Heal()
	for _, m := range s.machines {
		_, err := m.WaitTunnels(s.within(startPatience), 2)
		s.must(err)
	}
	s.fill(s.b)
	s.fill(s.c)
	s.fill(s.a) // what c could spare after all
	var sum uint64
	for _, m := range s.machines {
		st, err := m.Status()
		s.must(err)
		sum += st.IPAM.Used
	}
	// Whoever has free addresses keeps a few to itself; all others are in use.
	t.Logf("%d of 62 addresses are in use", sum)
	s.must(cluster.Poll(s.within(startPatience), func() error { // a loaded machine may not answer in time once
		begin := time.Now()
		r := s.a.Type("ip", "claim")
		took := time.Since(begin)
		t.Logf("a full pool is told after %.1f s (bar: 8 s): %s", took.Seconds(), r.Words())
		if r.Code == 0 || !strings.Contains(r.Words(), "2 full") {
			return fmt.Errorf("a full pool is told after %s: exit %d, %s", took, r.Code, r.Words())
		}
		return nil
	}))
	s.distinctRings()
}

// fill takes addresses until there are no more, and returns what was said then.
func (s *story) fill(m *cluster.Machine) string {
	s.Helper()
	for range 70 {
		if r := m.Type("ip", "claim"); r.Code != 0 {
			return r.Words()
		}
	}
	s.Fatalf("%s never runs out of addresses", m)
	return ""
}

// distinctRings checks that what is kept by hand is kept once.
func (s *story) distinctRings() {
	s.Helper()
	holder := make(map[string]string)
	for _, m := range s.machines {
		var list control.Claims
		s.must(m.JSON(&list, "ip", "list"))
		for _, c := range list.Reserved {
			if other := holder[c.Address.String()]; other != "" {
				s.Errorf("%s is kept by %s and by %s", c.Address, other, m)
			}
			holder[c.Address.String()] = m.Name()
		}
	}
}

// A pool too small for the machines that are to come is refused with one that is not, and pools of several sizes work.
func TestPoolsOfAllSizes(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.machines = s.machines[:2]
	r := s.a.Type("init", "--pool", "10.9.0.0/24", "--expect-nodes", "40")
	if want := "needs twice as many as nodes). Choose a wider --pool, such as 10.9.0.0/19"; r.Code == 0 || !strings.Contains(r.Words(), want) {
		t.Errorf("exit %d: %s", r.Code, r.Words())
	}
	for _, pool := range []string{"10.9.0.0/16", "10.9.0.0/26"} {
		s.form("--pool", pool)
		var pods []*cluster.Pod
		for _, m := range s.machines {
			p, err := m.Attach(fmt.Sprint("in", len(pool), pool[len(pool)-2:]))
			s.must(err)
			pods = append(pods, p)
		}
		s.connected(pods)
		s.oneRing(s.machines...)
		for i, m := range s.machines {
			s.must(pods[i].Detach())
			_, err := m.CLI("leave", "--purge")
			s.must(err)
			<-m.Daemon.Done()
		}
	}
}
