package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
	"weft/test/netlab"
)

// A machine that is alive is removed by force while its pod floods pods of the two others: they stop accepting at once, all
// of its packets and not those of each other. It runs on, knows who removed it and why and what to type, and comes back as
// a new node with a new token only.
func TestRemovedMachineIsCutOff(t *testing.T) {
	for name, args := range map[string][]string{"sleeve": {"--transport", "sleeve"}, "vxlan": {"--trusted-subnets", "198.18.0.0/16"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it mostly waits
			removeUnderLoad(t, args...)
		})
	}
}

func removeUnderLoad(t *testing.T, args ...string) {
	s := tell(t)
	s.form(args...)
	pods := s.pods()
	s.connected(pods)
	watch := s.watch(s.pools()...)
	gone, err := s.c.Status()
	s.must(err)

	s.refused(s.a.Type("peer", "remove", "c").Failure(), "c is alive", "--force", "--stolen")
	s.refused(s.a.Type("peer", "remove", "a").Failure(), "does not remove itself", "weft leave")
	s.must(s.a.Type("issuer", "remove", "b").Failure())
	_, err = s.b.WaitFor(s.within(patience), func(st control.Status) error {
		if st.Node.Issuer {
			return fmt.Errorf("still an issuer")
		}
		return nil
	})
	s.must(err)
	s.refused(s.b.Type("peer", "remove", "--force", "c").Failure(), "may not remove others", "only issuers may: a, c")

	from := pods[2].Addrs[0]
	var caught netlab.Captures
	for _, p := range pods[:2] {
		caught = append(caught, p.Capture("eth0", netlab.CaptureOptions{Keep: 1, Match: func(p *netlab.Packet) bool {
			h, ok := p.IP()
			return ok && !p.Out && h.Src == from
		}}))
	}
	floodA := s.floodPods(pods[2], pods[0].Addrs[0], 1000, time.Minute)
	floodB := s.floodPods(pods[2], pods[1].Addrs[0], 1000, time.Minute)
	for _, c := range caught {
		s.must(c.WaitFor(s.within(patience), 100))
	}
	typed := time.Now()
	r := s.a.Type("peer", "remove", "--force", "c")
	s.must(r.Failure())
	answered := time.Since(typed)
	if !strings.Contains(r.Stderr, "c is removed (by hand)") || !strings.Contains(r.Stderr, "2 of 2 members have it on disk") {
		t.Errorf("%s", r.Stderr)
	}
	for _, p := range pods[:2] {
		s.must(cluster.Poll(s.within(patience), func() error {
			if _, err := pods[2].Ping(s.within(time.Second), p.Addrs[0]); err == nil {
				return fmt.Errorf("%s still reaches %s", pods[2], p)
			}
			return nil
		}))
	}
	for _, said := range []string{floodA(), floodB()} {
		if strings.Contains(said, "lost 0,") {
			t.Errorf("nothing was lost: was it removed at all? %s", said)
		}
	}
	caught.Stop()
	for i, c := range caught {
		last := c.Packets()[0].Time.Sub(typed)
		t.Logf("%s: last packet accepted %.0f ms after the command was typed, which took %.0f ms (bar: 1,000 ms)",
			s.machines[i], ms(last), ms(answered))
	}
	s.connected(pods[:2])

	st, err := s.c.WaitFor(s.within(patience), inState(control.NodeRemoved))
	s.must(err)
	for _, words := range []string{"removed by hand by a", "weft join TOKEN"} {
		if !strings.Contains(st.Node.Reason, words) {
			t.Errorf("its reason does not say %q: %s", words, st.Node.Reason)
		}
	}
	for _, m := range []*cluster.Machine{s.a, s.b} {
		st, err := m.Status()
		s.must(err)
		i := slices.IndexFunc(st.Peers, func(p control.Peer) bool { return p.ID == gone.Node.ID })
		if i < 0 || st.Peers[i].State != control.PeerRemoved || st.Cluster.Members != 2 {
			t.Errorf("%s: %+v", m, st.Peers)
		}
	}
	s.must(s.a.Type("peer", "remove", "c").Failure()) // again is nothing new
	s.reclaimed(typed, gone.Node.ID, s.a, s.b)
	s.must(s.a.Type("peer", "remove", "--wait", "c").Failure())

	// After a restart it knows still. A new token makes it another node.
	s.must(s.c.Kill())
	s.must(s.c.Up(args...))
	_, err = s.c.WaitFor(s.within(patience), inState(control.NodeRemoved))
	s.must(err)
	token, _ := s.create(s.a)
	s.must(s.c.Type("join", token).Failure())
	s.whole()
	st, err = s.c.Status()
	s.must(err)
	if st.Node.ID == gone.Node.ID || st.Node.Name != "c" {
		t.Errorf("it came back as %+v", st.Node)
	}
	s.distinct()
	if !slices.Contains(args, "--trusted-subnets") {
		s.sealed(watch)
	}
}

// A stolen machine is cut off alive without more ado, with the token that it joined with; who else used that is named. Its
// keys are refused for ever.
func TestStolenMachineIsRefused(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.machines = s.machines[:2]
	s.founded()
	shared, id := s.create(s.a)
	s.must(s.b.Up("--join", shared))
	s.must(s.c.Up("--join", shared))
	s.machines = append(s.machines, s.c)
	s.whole()

	r := s.a.Type("peer", "remove", "--stolen", "c")
	s.must(r.Failure())
	for _, words := range []string{"c is removed (stolen)", "is revoked: " + id, "With the same token joined: b"} {
		if !strings.Contains(r.Stderr, words) {
			t.Errorf("it does not say %q: %s", words, r.Stderr)
		}
	}
	st, err := s.c.WaitFor(s.within(patience), inState(control.NodeRemoved))
	s.must(err)
	if !strings.Contains(st.Node.Reason, "reported stolen by a") {
		t.Errorf("%s", st.Node.Reason)
	}
	s.refused(s.c.Type("join", shared).Failure(), "the token was revoked")
	s.machines = s.machines[:2]
	s.whole()
}

func inState(want string) func(control.Status) error {
	return func(st control.Status) error {
		if st.Node.State != want {
			return fmt.Errorf("state %s (%s), want %s", st.Node.State, st.Node.Reason, want)
		}
		return nil
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
