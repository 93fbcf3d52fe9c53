package e2e

import (
	"fmt"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
)

// Members leave one after the other until one is left: each takes its vote along and leaves its space to others, so the last
// one can still let machines in. When it leaves too the cluster is not lost: it starts again from there.
func TestVotesLeaveWithTheirMembers(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.form()
	before, err := s.a.Status()
	s.must(err)
	for i, m := range []*cluster.Machine{s.c, s.b} {
		left, err := m.Status()
		s.must(err)
		began := time.Now()
		s.must(m.Type("leave").Failure())
		s.machines = s.machines[:2-i]
		for _, at := range s.machines {
			_, err := at.WaitFor(s.within(patience), func(st control.Status) error {
				if st.Cluster.Members != 2-i || len(st.IPAM.Reclaims) > 0 {
					return fmt.Errorf("%d members, reclaims %+v", st.Cluster.Members, st.IPAM.Reclaims)
				}
				return nil
			})
			s.must(err)
		}
		s.reclaimed(began, left.Node.ID, s.machines...)
		s.distinct()
	}
	token, _ := s.create(s.a)
	s.must(s.b.Up("--join", token))
	s.machines = append(s.machines, s.b)
	s.whole()
	s.must(s.b.Type("leave").Failure())
	s.must(s.a.Type("leave").Failure())
	s.must(cluster.Poll(s.within(patience), func() error {
		select {
		case <-s.a.Daemon.Done():
			return nil
		default:
			return fmt.Errorf("the daemon runs still")
		}
	}))

	s.must(s.a.Up())
	s.machines = s.machines[:1]
	s.whole()
	st, err := s.a.Status()
	s.must(err)
	if st.Cluster.ID != before.Cluster.ID || st.Node.ID != before.Node.ID {
		t.Errorf("it is %+v of %+v", st.Node, st.Cluster)
	}
	token, _ = s.create(s.a)
	s.must(s.c.Up("--join", token))
	s.machines = append(s.machines, s.c)
	s.whole()
}
