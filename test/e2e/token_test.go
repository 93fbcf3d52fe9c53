package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
)

// A token that is no good says why, each in a sentence of its own, and lets nobody in.
func TestEachBadTokenHasItsSentence(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	d := s.site("d")
	good := s.founded()
	s.machines = s.machines[:1]
	for _, m := range []*cluster.Machine{s.b, s.c, d} {
		s.must(m.Up())
		s.serving(m)
	}

	brief, _ := s.create(s.a, "--ttl", "1s")
	born := time.Now()
	once, _ := s.create(s.a, "--uses", "1")
	revoked, id := s.create(s.a)
	s.must(s.a.Type("token", "revoke", id).Failure())

	// A cluster of its own on d, which says that it is where a is.
	_, err := d.CLI("init", "--advertise", s.a.Addr4().String())
	s.must(err)
	_, err = d.WaitReady(s.within(patience), 1)
	s.must(err)
	foreign, err := d.CLI("token", "create")
	s.must(err)
	s.must(d.Kill())
	s.must(d.KillWire(s.within(patience)))

	refusals := func(m *cluster.Machine, token, sentence string, code int) {
		t.Helper()
		r := m.Type("join", token)
		if r.Code != code || !strings.HasPrefix(r.Words(), "weft: "+sentence) {
			t.Errorf("exit %d, %q\nwant exit %d, %q", r.Code, r.Words(), code, sentence)
		}
		t.Logf("%s", r.Words())
	}
	refusals(s.b, "bogus", "this is not a join token", control.ExitUsage)
	refusals(s.b, "weft2"+good[5:], "the token was made by a newer weft than this one", control.ExitFailed)
	refusals(s.b, good[:len(good)-9], "the token is cut off or mistyped", control.ExitUsage)
	refusals(s.b, swapped(good), "the token is cut off or mistyped", control.ExitUsage)
	refusals(s.b, revoked, "the token was revoked", control.ExitFailed)
	refusals(s.b, strings.TrimSpace(foreign), "the token is for another cluster than the machine at 198.18.1.2:6783", control.ExitFailed)
	<-time.After(time.Until(born.Add(1100 * time.Millisecond)))
	refusals(s.b, brief, "the token has expired", control.ExitFailed)

	_, err = s.c.CLI("join", once)
	s.must(err)
	refusals(s.b, once, "the token has been used up", control.ExitFailed)

	st, err := s.a.WaitReady(s.within(patience), 2)
	s.must(err)
	if st.Cluster.Members != 2 {
		t.Errorf("%d members", st.Cluster.Members)
	}

	// And nobody at all is there.
	s.must(s.a.Kill())
	s.must(s.a.KillWire(s.within(patience)))
	refusals(s.b, good, "no seed of the token can be reached", control.ExitFailed)
}

// Whoever has stolen a token can become a new member until somebody revokes it, and nothing else: the name and the blocks
// of a member stay with it.
func TestStolenTokenTakesNothingOver(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.machines = s.machines[:2]
	token := s.form()
	pods := s.pods()
	s.connected(pods)
	before, err := s.a.Status()
	s.must(err)
	owner := before.Peers[0].ID

	s.must(s.c.Up())
	s.serving(s.c)
	_, err = s.c.CLI("join", token, "--name", "b")
	s.must(err)
	s.machines = append(s.machines, s.c)
	s.whole()
	s.connected(pods)
	s.distinct()

	var ring control.Ring
	s.must(s.a.JSON(&ring, "ip", "ring"))
	for _, p := range before.Peers[0].Blocks {
		for _, b := range ring.Blocks {
			if b.Prefix == p && b.Owner != owner {
				t.Errorf("%s was %s's and is %s's", p, owner, b.Owner)
			}
		}
	}
	// The name alone is ambiguous now and says so; the ID is not.
	s.refused(s.a.Type("peer", "show", "b").Failure(), "2 members are called", owner)
	s.must(s.a.Type("peer", "show", owner).Failure())
	st, err := s.c.Status()
	s.must(err)
	if st.Node.ID == owner {
		t.Error("the newcomer has the ID of the old member")
	}
}

// founded makes a cluster of the first machine alone.
func (s *story) founded(args ...string) (token string) {
	s.Helper()
	token, err := s.machines[0].Found(s.within(patience), args...)
	s.must(err)
	return token
}

// serving waits until a daemon without a cluster answers.
func (s *story) serving(m *cluster.Machine) {
	s.Helper()
	_, err := m.WaitFor(s.within(patience), waiting)
	s.must(err)
}

// tokens are the IDs of all tokens.
func (s *story) tokens(m *cluster.Machine) []string {
	s.Helper()
	var list control.Tokens
	s.must(m.JSON(&list, "token", "list"))
	var ids []string
	for _, k := range list.Tokens {
		ids = append(ids, k.ID)
	}
	return ids
}

// create makes a token and tells its ID too, which is not printed with it.
func (s *story) create(m *cluster.Machine, args ...string) (token, id string) {
	s.Helper()
	before := s.tokens(m)
	out, err := m.CLI(append([]string{"token", "create"}, args...)...)
	s.must(err)
	for _, k := range s.tokens(m) {
		if !slices.Contains(before, k) {
			id = k
		}
	}
	return strings.TrimSpace(out), id
}

// swapped exchanges two letters in the middle of a token, as a hurried person does.
func swapped(token string) string {
	b := []byte(token)
	for i := len(b) / 2; ; i++ {
		if b[i] != b[i+1] {
			b[i], b[i+1] = b[i+1], b[i]
			return string(b)
		}
	}
}
