package e2e

import (
	"fmt"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
	"weft/test/netlab"
)

// Five machines lose all ways but those to two neighbours each. All pods go on to reach each other, through those who are
// between; pods are attached everywhere meanwhile; and when the ways are back, all go straight again.
func TestRingOfNeighbours(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.site("d")
	fifth, _ := s.sites.Site(s.lab, "e", 5)
	s.machines = append(s.machines, cluster.On(fifth, programs))
	s.form()
	pods := s.pods()
	s.connected(pods)
	watch := s.watch(s.pools()...)

	far := func(i int) *cluster.Machine { return s.machines[(i+2)%len(s.machines)] } // meets each pair that are no neighbours once
	var cuts []*netlab.Cut
	for i, m := range s.machines {
		cuts = append(cuts, s.lab.Partition([]*netlab.Host{m.Host}, []*netlab.Host{far(i).Host}))
	}
	end := time.Now().Add(20 * time.Second)
	began := time.Now()
	s.connected(pods)
	t.Logf("all pods reach each other through neighbours after %.1f s", time.Since(began).Seconds())
	for i, m := range s.machines {
		s.reaches(m, far(i), control.PathRelay)
		p, err := m.Attach("ring")
		s.must(err)
		pods = append(pods, p)
	}
	s.distinct()
	<-time.After(time.Until(end))

	for _, c := range cuts {
		c.Heal()
	}
	began = time.Now()
	s.whole()
	s.connected(pods)
	s.took("ring of neighbours (bar: 30 s)", began)
	for i, m := range s.machines {
		s.reaches(m, far(i), control.PathDirect)
	}
	s.took("ring of neighbours, all straight", began)
	s.distinct()
	s.sealed(watch)
}

// reaches waits until a machine's packets for another take a path of that kind; who had to leave one does not hurry back.
func (s *story) reaches(m, other *cluster.Machine, path string) {
	s.Helper()
	_, err := m.WaitFor(s.within(3*time.Minute), func(st control.Status) error {
		if p := peerOf(st, other.Name()); p.Path != path {
			return fmt.Errorf("%s is reached by path %q (%s)", other, p.Path, p.Reason)
		}
		return nil
	})
	s.must(err)
}
