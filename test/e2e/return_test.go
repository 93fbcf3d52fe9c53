package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
	"weft/test/netlab"
)

// A machine loses its network for longer than --remove-after: the others remove it by themselves. When the cable is back it
// comes back by itself, as a new node with its pods still running, once.
func TestSilentMachineComesBack(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.form("--remove-after", "12s")
	pods := s.pods()
	s.connected(pods)
	watch := s.watch(s.pools()...)
	before, err := s.c.Status()
	s.must(err)

	s.must(s.c.Kill())
	s.must(s.c.KillWire(s.within(patience)))
	down := time.Now()
	twin := filepath.Join(t.TempDir(), "state")
	s.must(exec.CommandContext(t.Context(), "cp", "-a", s.c.State(), twin).Run())
	for _, m := range []*cluster.Machine{s.a, s.b} {
		_, err := m.WaitFor(s.within(startPatience), removedPeer(before.Node.ID, "silence"))
		s.must(err)
	}
	t.Logf("removed %.1f s after its end", time.Since(down).Seconds())
	s.connected(pods[:2])
	s.reclaimed(down, before.Node.ID, s.a, s.b)

	s.must(s.c.Up("--remove-after", "12s"))
	began := time.Now()
	st, err := s.c.WaitFor(s.within(startPatience), func(st control.Status) error {
		if st.Node.State != control.NodeReady || st.Node.ID == before.Node.ID {
			return fmt.Errorf("it is %s as %s (%s)", st.Node.State, st.Node.ID, st.Node.Reason)
		}
		return nil
	})
	s.must(err)
	s.whole()
	s.took("return", began)
	if st.Node.Name != "c" || !st.Node.Voter {
		t.Errorf("%+v", st.Node)
	}
	// Its pod, which ran on, is reached under a new address.
	old := slices.Clone(pods[2].Addrs)
	s.must(cluster.Poll(s.within(patience), func() error {
		if err := pods[2].Attach(); err != nil {
			return err
		}
		if pods[2].Addrs[0] == old[0] {
			return fmt.Errorf("it still has %s", old[0])
		}
		return nil
	}))
	s.connected(pods)
	s.took("pods renumbered", began)
	s.distinct()

	// What it sends from an address that is another's now, or was its own in its former life, arrives nowhere and is counted.
	marker := []byte("from a former life")
	arrives := func(p *netlab.Packet) bool {
		h, ok := p.IP()
		return ok && !p.Out && h.DstPort != 0 && netlab.Contains(marker)(p)
	}
	there := pods[0].Capture("eth0", netlab.CaptureOptions{Keep: 16, Match: arrives})
	counted := s.metrics(s.a)
	for i, src := range []*[]netip.Addr{&old, &pods[1].Addrs} {
		for family, a := range *src {
			s.must(s.c.SendDevice("weft-sl", netlab.UDPPacket(addrPort(a), addrPort(pods[0].Addrs[family]), marker)))
			s.must(cluster.Poll(s.within(patience), func() error {
				if n := s.metrics(s.a).Event("sleeve", "peer_drop_source") - counted.Event("sleeve", "peer_drop_source"); n < float64(2*i+family+1) {
					return fmt.Errorf("%v packets were dropped for their source", n)
				}
				return nil
			}))
		}
	}
	s.must(s.c.SendDevice("weft-sl", netlab.UDPPacket(addrPort(pods[2].Addrs[0]), addrPort(pods[0].Addrs[0]), marker)))
	s.must(there.WaitFor(s.within(patience), 1))
	there.Stop()
	if there.Count() != 1 {
		t.Errorf("%d packets arrived, want the one with its own address:\n%s", there.Count(), netlab.Captures{there}.Describe(5))
	}

	var tokens control.Tokens
	s.must(s.a.JSON(&tokens, "token", "list"))
	if len(tokens.Tokens) != 1 {
		t.Errorf("the proof of return is shown as a token: %+v", tokens)
	}
	s.sealed(watch)

	// A second copy of its disk does not come back. It says so, and a token makes it another node.
	s.must(s.c.Kill())
	s.must(s.c.KillWire(s.within(patience)))
	s.must(os.RemoveAll(s.c.State()))
	s.must(exec.CommandContext(t.Context(), "cp", "-a", twin, s.c.State()).Run())
	s.must(s.c.Up("--remove-after", "12s"))
	_, err = s.c.WaitFor(s.within(patience), func(st control.Status) error {
		if st.Node.State != control.NodeRemoved || !strings.Contains(st.Node.Reason, "has come back already") {
			return fmt.Errorf("it is %s: %s", st.Node.State, st.Node.Reason)
		}
		return nil
	})
	s.must(err)
	s.refused(s.c.Type("token", "create").Failure(), "no member any more")
	token, _ := s.create(s.a)
	s.must(s.c.Type("join", token).Failure())
	_, err = s.c.WaitReady(s.within(patience), 3)
	s.must(err)
}

// A machine is removed while another one is away that must agree to give its space to others: the status names who is
// waited for, and when it is back it is done.
func TestReclaimWaitsForTheSilent(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.form()
	gone, err := s.c.Status()
	s.must(err)
	for _, m := range []*cluster.Machine{s.b, s.c} {
		s.must(m.Kill())
		s.must(m.KillWire(s.within(patience)))
	}
	s.must(cluster.Poll(s.within(patience), func() error { return s.a.Type("peer", "remove", "c").Failure() }))
	_, err = s.a.WaitFor(s.within(patience), func(st control.Status) error {
		if len(st.IPAM.Reclaims) != 1 || !slices.Equal(st.IPAM.Reclaims[0].WaitsFor, []string{"b"}) {
			return fmt.Errorf("it waits for %+v", st.IPAM.Reclaims)
		}
		if !slices.ContainsFunc(st.Warnings, func(w string) bool { return strings.Contains(w, "reclaim waits for b") }) {
			return fmt.Errorf("the warnings are %q", st.Warnings)
		}
		return nil
	})
	s.must(err)
	s.must(s.b.Up())
	began := time.Now()
	s.reclaimed(began, gone.Node.ID, s.a, s.b)
	_, err = s.a.WaitFor(s.within(patience), func(st control.Status) error {
		if len(st.IPAM.Reclaims) != 0 {
			return fmt.Errorf("it waits still: %+v", st.IPAM.Reclaims)
		}
		return nil
	})
	s.must(err)
	_, err = s.b.WaitFor(s.within(patience), func(st control.Status) error {
		if st.Cluster.Members != 2 {
			return fmt.Errorf("%+v", st.Cluster)
		}
		return nil
	})
	s.must(err)
}

// Machines without a vote come and go without a word: those who are killed are removed after a while, those who are stopped
// leave, and others join all the time. At the end everything is as it was.
func TestMachinesComeAndGo(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	after := []string{"--remove-after", "10s"}
	s.form(after...)
	token, _ := s.create(s.a, "--ephemeral")
	began := time.Now()
	for round := range 2 {
		var guests []*cluster.Machine
		for i := range 3 {
			h, _ := s.sites.Site(s.lab, fmt.Sprintf("g%d%d", round, i), 10+3*round+i)
			g := cluster.On(h, programs)
			s.must(g.Up(append([]string{"--join", token}, after...)...))
			guests = append(guests, g)
		}
		for _, g := range guests {
			_, err := g.WaitReady(s.within(startPatience), 5)
			s.must(err)
		}
		s.must(guests[0].Stop())
		_, err := s.b.WaitFor(s.within(patience), func(st control.Status) error {
			return peerIs(st, guests[0].Name(), "removed: left")
		})
		s.must(err)
		for _, g := range guests[1:] {
			s.must(g.Kill())
			s.must(g.KillWire(s.within(patience)))
		}
		_, err = s.c.WaitFor(s.within(startPatience), func(st control.Status) error {
			return errors.Join(peerIs(st, guests[1].Name(), "removed: silence"), peerIs(st, guests[2].Name(), "removed: silence"))
		})
		s.must(err)
	}
	s.whole()
	for _, m := range s.machines {
		st, err := m.WaitFor(s.within(patience), func(st control.Status) error {
			if st.Cluster.Members != 3 || st.Cluster.Alive != 3 {
				return fmt.Errorf("%+v", st.Cluster)
			}
			return nil
		})
		s.must(err)
		for _, p := range st.Peers {
			if p.State == control.PeerRemoved {
				s.reclaimed(began, p.ID, m)
			}
		}
	}
}

// reclaimed waits until nothing of the pools belongs to a node, as these machines see it.
func (s *story) reclaimed(since time.Time, id string, at ...*cluster.Machine) {
	s.Helper()
	for _, m := range at {
		s.must(cluster.Poll(s.within(startPatience), func() error {
			var ring control.Ring
			if err := m.JSON(&ring, "ip", "ring"); err != nil {
				return err
			}
			for _, b := range ring.Blocks {
				if b.Owner == id {
					return fmt.Errorf("%s: %s is still its own", m, b.Prefix)
				}
			}
			return nil
		}))
	}
	s.Logf("its space belongs to others %.1f s after its end", time.Since(since).Seconds())
}

func peerIs(st control.Status, name, reason string) error {
	i := slices.IndexFunc(st.Peers, func(p control.Peer) bool { return p.Name == name })
	if i < 0 || st.Peers[i].State != control.PeerRemoved || !strings.Contains(st.Peers[i].Reason, reason) {
		return fmt.Errorf("%s is not %s: %+v", name, reason, st.Peers)
	}
	return nil
}

func removedPeer(id, reason string) func(control.Status) error {
	return func(st control.Status) error {
		i := slices.IndexFunc(st.Peers, func(p control.Peer) bool { return p.ID == id })
		if i < 0 || st.Peers[i].State != control.PeerRemoved || !strings.Contains(st.Peers[i].Reason, reason) {
			return fmt.Errorf("%s is not removed for %s: %+v", id, reason, st.Peers)
		}
		return nil
	}
}
