package e2e

import (
	"fmt"
	"os"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
)

// One machine after the other is set up anew, its disk wiped, as an operator does who replaces all of a cluster's machines: what it
// was is removed, and it joins with a token of another. Every join works at once, all space is back and nobody else's, pods are
// reached, and in the end nobody is left who was there at the beginning, the founder included. There is no --force.
func TestRollingResetOfRealMachines(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.form()
	former := make(map[string]bool)
	for _, i := range []int{2, 1, 0} { // the founder last
		m, helper := s.machines[i], s.machines[(i+2)%3]
		st, err := m.Status()
		s.must(err)
		former[st.Node.ID] = true
		s.must(m.Kill())
		s.must(m.KillWire(s.within(patience)))
		s.must(os.RemoveAll(m.State()))
		died := time.Now()
		// Until the others miss it, it is refused: it might be alive.
		s.must(cluster.Poll(s.within(startPatience), func() error { return helper.Type("peer", "remove", m.Name()).Failure() }))
		s.reclaimed(died, st.Node.ID, helper)
		token, _ := s.create(helper)
		s.must(m.Up("--join", token))
		s.whole()
		s.took(fmt.Sprintf("%s is another", m), died)
		if m != s.a {
			s.issuers(helper, 3) // a newcomer takes the place of the one that is gone, as long as there is the root key
		}
	}
	s.connected(s.pods())
	s.distinct()
	for _, m := range s.machines {
		st, err := m.Status()
		s.must(err)
		var ring control.Ring
		s.must(m.JSON(&ring, "ip", "ring"))
		owners := make(map[string]bool)
		for _, b := range ring.Blocks {
			owners[b.Owner] = true
			if former[b.Owner] {
				t.Errorf("%s: %s belongs to a machine that is no more", m, b.Prefix)
			}
		}
		if former[st.Node.ID] || st.Cluster.Members != 3 || len(owners) != 3 {
			t.Errorf("%s is %s of %d members, of which %d have space", m, st.Node.ID, st.Cluster.Members, len(owners))
		}
	}
}

// issuers waits until so many living members may admit others.
func (s *story) issuers(m *cluster.Machine, want int) {
	s.Helper()
	s.must(cluster.Poll(s.within(patience), func() error {
		var list control.Issuers
		if err := m.JSON(&list, "issuer", "list"); err != nil {
			return err
		}
		alive := 0
		for _, i := range list.Issuers {
			if i.State == control.PeerAlive {
				alive++
			}
		}
		if alive < want {
			return fmt.Errorf("%d issuers are alive: %+v", alive, list.Issuers)
		}
		return nil
	}))
}
