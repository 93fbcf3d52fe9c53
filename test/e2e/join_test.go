package e2e

import (
	"fmt"
	"testing"

	"weft/prog/control"
)

// Three machines, and the two that join start before the founder's port answers them.
func TestMachinesJoinInAnyOrder(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	token := s.form()
	pods := s.pods()
	s.connected(pods)
	s.distinct()

	// The same line again changes nothing.
	s.must(s.b.Stop())
	s.must(s.b.Up("--join", token))
	s.whole()
	s.connected(pods)
}

// With two members the founder's vote is needed; with three, any two admit a fourth.
func TestQuorumDecidesWhoJoins(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	d := s.site("d")
	s.machines = s.machines[:2]
	s.form()
	token, err := s.b.CLI("token", "create")
	s.must(err)

	s.must(s.a.Kill())
	s.must(s.c.Up())
	_, err = s.c.WaitFor(s.within(patience), waiting)
	s.must(err)
	_, err = s.c.CLI("join", token)
	s.refused(err, "a", "voting members")

	s.must(s.a.Up())
	s.machines = s.machines[:2]
	s.whole()
	_, err = s.c.CLI("join", token)
	s.must(err)
	s.machines = append(s.machines, s.c)
	s.whole()

	// Any one of three may be down, the founder too: b and c hold delegations.
	s.must(s.a.Kill())
	token, err = s.c.CLI("token", "create")
	s.must(err)
	s.must(d.Up("--join", token))
	_, err = d.WaitReady(s.within(startPatience), 3)
	s.must(err)
}

// waiting checks that the daemon serves, and is in no cluster.
func waiting(st control.Status) error {
	if st.Node.State != control.NodeWaiting {
		return fmt.Errorf("state %s (%s)", st.Node.State, st.Node.Reason)
	}
	return nil
}
