package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
	"weft/test/netlab"
)

// Four machines are told that a cluster of two is a large one. With their daemons gossip ends, and so all sessions close:
// the wires send nothing any more. The first packet of a pod opens one session and no other, it closes when the pod is
// silent, and nothing of it is ever seen in clear.
func TestSessionsFollowTraffic(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.site("d")
	args := []string{"--transport", "sleeve", "--sparse-above", "1", "--sparse-idle", "5s", "--no-relay"} // or helpers are woken where b is slow
	s.form(args...)
	pods := s.pods()
	s.connected(pods)
	watch := s.watch(s.pools()...)
	for _, m := range s.machines {
		s.must(m.Kill())
	}
	all := s.capture(s.a, s.machines...)
	others := s.capture(s.a, s.c, s.machines[3])

	began := time.Now()
	s.must(s.silent(all))
	s.took("all sessions closed, and the wire was silent", began)
	before := others.Count()
	for _, addr := range pods[1].Addrs {
		began = time.Now()
		s.must(pods[0].WaitPing(s.within(startPatience), addr))
		s.Logf("a packet to a peer that sleeps was answered after %v", time.Since(began).Round(100*time.Microsecond))
	}
	s.must(s.silent(all))
	if n := others.Count() - before; n != 0 {
		t.Errorf("%d datagrams to or from peers that nothing was sent to", n)
	}

	// A wire that dies while everybody sleeps comes back with its daemon, and sleeps on.
	s.must(s.b.KillWire(s.within(startPatience)))
	for _, m := range s.machines[:2] {
		s.must(m.Up(args...))
	}
	s.must(pods[0].WaitPing(s.within(startPatience), pods[1].Addrs[0]))
	for _, m := range s.machines[2:] {
		s.must(m.Up(args...))
	}
	s.whole()
	for _, m := range s.machines {
		_, err := m.WaitFor(s.within(startPatience), func(st control.Status) error {
			for _, p := range st.Peers {
				if p.Transport != "sleeve" {
					return fmt.Errorf("%s is reached by %q (%s)", p.Name, p.Transport, p.Reason)
				}
			}
			return nil
		})
		s.must(err)
	}
	s.connected(pods)
	s.sealed(watch)
}

// capture sees what the wires of a machine and of others send each other.
func (s *story) capture(m *cluster.Machine, others ...*cluster.Machine) *netlab.Capture {
	s.Helper()
	theirs := map[netip.Addr]bool{}
	for _, o := range others {
		if o != m {
			theirs[o.Addr4()], theirs[o.Addr6()] = true, true
		}
	}
	for _, k := range s.lab.Links() {
		if k.A.Host == m.Host || k.B.Host == m.Host {
			return k.Capture(netlab.CaptureOptions{Match: func(p *netlab.Packet) bool {
				h, ok := p.IP()
				return ok && len(p.Datagrams()) > 0 && h.SrcPort == 6783 && h.DstPort == 6783 && (theirs[h.Src] || theirs[h.Dst])
			}})
		}
	}
	s.Fatalf("%s has no link", m)
	return nil
}

// silent waits until nothing new was captured for longer than the pause between two probes of an idle session.
func (s *story) silent(c *netlab.Capture) error {
	const pause = 8 * time.Second
	ctx := s.within(2 * time.Minute)
	for last := c.Count(); ; last = c.Count() {
		quiet, cancel := context.WithTimeout(ctx, pause)
		err := c.WaitFor(quiet, last+1)
		cancel()
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("never silent: %d datagrams", c.Count())
		case err != nil && c.Count() == last:
			return nil
		}
	}
}

// Three machines are told that they are a large cluster, and that a moment without a packet is a long time. Status says of a peer
// that it is asleep and that this is no fault, the first packet of a pod wakes it, and it falls asleep again. Gossip wakes
// everybody now and then, so each picture is waited for.
func TestStatusShowsWhoSleeps(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.form("--transport", "sleeve", "--sparse-above", "1", "--sparse-idle", "200ms", "--no-relay")
	pods := s.pods()
	s.connected(pods)
	sleeps := func() {
		s.Helper()
		s.must(cluster.Poll(s.within(startPatience), func() error {
			st, err := s.a.Status()
			if err != nil {
				return err
			}
			if p := peerOf(st, "b"); !p.Asleep || p.Path != control.PathNone || p.State != control.PeerAlive || p.Transport != "sleeve" ||
				!strings.Contains(p.Reason, "asleep: nothing was sent for a while, and the next packet opens a session") {
				return fmt.Errorf("b is not asleep: %+v", p)
			}
			return nil
		}))
	}
	sleeps()
	s.must(cluster.Poll(s.within(startPatience), func() error { // people read it as well
		line, err := row(s.a, "b")
		if err == nil && (line["STATE"] != "alive" || line["PATH"] != "asleep" || !strings.Contains(line["WHY"], "the next packet opens a session")) {
			err = fmt.Errorf("it prints %v", line)
		}
		return err
	}))
	s.advice(s.a, "b", "a and b have nothing to say to each other now, so no way is open: send something (weft ping b)")
	for range 2 {
		began := time.Now()
		s.must(pods[0].WaitPing(s.within(startPatience), pods[1].Addrs[0]))
		s.Logf("a packet to a peer that was asleep a moment ago was answered after %v", time.Since(began).Round(time.Millisecond))
		talk := s.a.Command(programs.Weft, "--socket", s.a.Socket(), "ping", "b", "-i", "20ms").Quiet()
		s.must(talk.Start())
		_, err := s.a.WaitFor(s.within(startPatience), func(st control.Status) error {
			if p := peerOf(st, "b"); p.Asleep || p.Path != control.PathDirect || p.RTTms <= 0 {
				return fmt.Errorf("b is not awake: %+v", p)
			}
			return nil
		})
		s.must(err)
		talk.Kill()
		sleeps()
	}
}
