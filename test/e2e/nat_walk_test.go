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

// walk is a cluster of homes around the internet: machines[0] is the founder.
type walk struct {
	*story
	net   *netlab.Internet
	homes []*netlab.Home
}

// walkAround makes a machine for each kind of access, named p, q, … for open ones and a, b, … for those behind something.
func walkAround(t *testing.T, kinds ...netlab.Access) *walk {
	t.Helper()
	w := &walk{story: &story{T: t, lab: netlab.New(t)}}
	w.net = netlab.NewInternet(w.lab)
	open, behind := 'p', 'a'
	for _, k := range kinds {
		name := &behind
		if k == netlab.Public {
			name = &open
		}
		h := w.net.Home(string(*name), k)
		*name++
		w.homes = append(w.homes, h)
		w.machines = append(w.machines, cluster.On(h.Host, programs))
	}
	return w
}

// peerOf is a machine's line about another.
func peerOf(st control.Status, name string) control.Peer {
	for _, p := range st.Peers {
		if p.Name == name {
			return p
		}
	}
	return control.Peer{}
}

// awaitPath waits until a machine reaches another in one way, and for that reason.
func (w *walk) awaitPath(m *cluster.Machine, name, path, reason string) control.Peer {
	w.Helper()
	st, err := m.WaitFor(w.within(startPatience), func(st control.Status) error {
		if p := peerOf(st, name); p.Path != path || !strings.Contains(p.Reason, reason) {
			return fmt.Errorf("%s is reached by path %q via %v (%s)", name, p.Path, p.Via, p.Reason)
		}
		return nil
	})
	if err != nil {
		r := m.Type("doctor", name)
		w.Logf("weft doctor %s on %s:\n%s%s", name, m, r.Stdout, r.Stderr)
	}
	w.must(err)
	return peerOf(st, name)
}

// Two machines behind NATs that know no address in common join at a public one: their pods reach each other through it at
// once, and the status says by whom and why.
func TestHardNATsAreRelayed(t *testing.T) {
	t.Parallel()
	w := walkAround(t, netlab.Public, netlab.BehindHard, netlab.BehindHard)
	began := time.Now()
	w.form()
	w.took("two machines behind hard NATs joined", began)
	pods := w.pods()
	w.connected(pods)
	a, b := w.machines[1], w.machines[2]
	for m, other := range map[*cluster.Machine]string{a: "b", b: "a"} {
		p := w.awaitPath(m, other, control.PathRelay, "hard NAT on both sides")
		if !slices.Equal(p.Via, []string{"p"}) {
			t.Errorf("%s reaches %s via %v", m, other, p.Via)
		}
		out, err := m.CLI("status")
		w.must(err)
		if !strings.Contains(out, "relayed via p") {
			t.Errorf("the status of %s does not say it:\n%s", m, out)
		}
		st, err := m.Status()
		w.must(err)
		if st.Node.NAT != "hard" || st.Node.Relay {
			t.Errorf("%s calls its NAT %q, and itself a relay: %v", m, st.Node.NAT, st.Node.Relay)
		}
	}

	// What carries their packets is the wire of p, not its daemon.
	flood := w.flood(pods[1].Host, pods[2].Addrs[0].String(), 6*time.Second)
	w.must(w.machines[0].Kill())
	w.must(w.machines[0].Up())
	w.whole()
	lost, text := flood()
	t.Logf("the relay's daemon was killed and started again: %s", text)
	if lost > 0 {
		t.Errorf("lost %d packets", lost)
	}
	w.awaitPath(a, "b", control.PathRelay, "hard NAT on both sides")
	w.awaitPath(b, "a", control.PathRelay, "hard NAT on both sides")
}

// Behind NATs of the common kinds the first packets go through the public machine, and soon directly; a box that is
// switched off and on again, and a machine that moves to another address, are followed.
func TestEasyNATsBecomeDirect(t *testing.T) {
	t.Parallel()
	w := walkAround(t, netlab.Public, netlab.Public, netlab.BehindHome, netlab.BehindStrict)
	w.form()
	began := time.Now()
	a, b := w.machines[2], w.machines[3]
	w.awaitPath(a, "b", control.PathDirect, "")
	w.awaitPath(b, "a", control.PathDirect, "")
	w.took("direct way behind NATs", began)
	pods := w.pods()
	w.connected(pods)
	for _, m := range []*cluster.Machine{a, b} {
		_, err := m.WaitFor(w.within(patience), func(st control.Status) error {
			if st.Node.NAT != "easy" {
				return fmt.Errorf("it calls its NAT %q", st.Node.NAT)
			}
			return nil
		})
		w.must(err)
	}

	flood := w.flood(pods[2].Host, pods[3].Addrs[0].String(), 8*time.Second)
	w.homes[2].Box.Rebind("eth0")
	_, text := flood()
	t.Logf("the box of a was switched off and on: %s", text)
	w.connected(pods)

	// q moves. Its peers follow where it is heard, whoever they are.
	flood = w.flood(pods[2].Host, pods[1].Addrs[0].String(), 8*time.Second)
	q := w.homes[1]
	moved := strings.TrimSuffix(q.Outside.String(), ".2") + ".77/24"
	q.DelAddr("eth0", q.Outside.String()+"/24")
	q.AddAddr("eth0", moved)
	q.DefaultVia(q.Outside.Prev())
	_, text = flood()
	t.Logf("q moved to another address: %s", text)
	w.connected(pods)
	w.whole()
}

// A machine that is told to carry nothing for others carries nothing, and says so.
func TestNoRelayCarriesNothing(t *testing.T) {
	t.Parallel()
	w := walkAround(t, netlab.Public, netlab.BehindHard, netlab.BehindHard)
	p, a := w.machines[0], w.machines[1]
	token, err := p.Found(w.within(patience), "--no-relay")
	w.must(err)
	for _, m := range w.machines[1:] {
		w.must(m.Up("--join", token))
	}
	for i, m := range w.machines {
		_, err := m.WaitTunnels(w.within(startPatience), []int{2, 1, 1}[i])
		w.must(err)
	}
	w.awaitPath(a, "b", control.PathNone, "")
	st, err := p.Status()
	w.must(err)
	if st.Node.Relay {
		t.Error("it calls itself a relay")
	}

	w.must(p.Stop())
	w.must(p.Up())
	began := time.Now()
	w.whole()
	w.took("a relay where there was none", began)
	w.connected(w.pods())
}

// The machine that carries the packets of two others is lost: another one carries them.
func TestRelayIsLost(t *testing.T) {
	t.Parallel()
	w := walkAround(t, netlab.Public, netlab.Public, netlab.BehindHard, netlab.BehindHard)
	w.form()
	pods := w.pods()
	w.connected(pods)
	a := w.machines[2]
	via := w.awaitPath(a, "b", control.PathRelay, "hard NAT on both sides").Via[0]
	lost := w.homes[strings.Index("pq", via)]
	flood := w.flood(pods[2].Host, pods[3].Addrs[0].String(), 8*time.Second)
	lost.Link.Down()
	_, text := flood()
	t.Logf("%s, which carried the packets, was lost: %s", via, text)
	w.must(pods[2].WaitPing(w.within(patience), pods[3].Addrs[0]))
	_, err := a.WaitFor(w.within(patience), func(st control.Status) error {
		if p := peerOf(st, "b"); p.Path != control.PathRelay || slices.Equal(p.Via, []string{via}) {
			return fmt.Errorf("b is reached by path %q via %v", p.Path, p.Via)
		}
		return nil
	})
	w.must(err)
	lost.Link.Up()
	w.whole()
	w.connected(pods)
}
