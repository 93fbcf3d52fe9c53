package router_test

import (
	"net/netip"
	"testing"
	"time"

	"weft/mesh/peer"
	"weft/router"
	"weft/router/vxlan"
)

// overIPv6 lets the two machines trust each other's IPv6 addresses only.
func overIPv6(l *lab) {
	for i := 1; i <= 2; i++ {
		trusted := []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}
		in := &l.n[i].in
		in.Underlay = []netip.Addr{addr("2001:db8:%d::1", i)}
		in.Trusted, in.Peers[0].Info.Trusted = trusted, trusted
		in.Peers[0].Info.Endpoints = []netip.AddrPort{netip.AddrPortFrom(addr("2001:db8:%d::1", 3-i), 6783)}
		in.Peers[0].Info.Transports = []string{vxlan.Name, vxlan.Name6}
	}
}

// Two machines that trust an IPv6 network carry both families over it, and take nothing from strangers on it.
func TestVXLANOverIPv6(t *testing.T) {
	l := newLab(t, overIPv6)
	n1, n2 := l.n[1], l.n[2]
	if p := n1.r.Status().Peers[0]; p.Transport != vxlan.Name6 || len(p.Rejected) != 1 {
		t.Errorf("chosen: %+v", p)
	}
	made := deviceIndex(t, n1)
	a, b := n1.pod("a", 10), n2.pod("b", 10)
	echo(t, b.NS, netip.AddrPortFrom(netip.IPv6Unspecified(), 7))
	reach(t, "IPv4 over IPv6", a.NS, b.v4, a.v4.String())
	reach(t, "IPv6 over IPv6", a.NS, b.v6, a.v6.String())

	before := drops(t, n1.host)["vxlan-stranger"]
	_, _ = ask(l.outside, netip.AddrPortFrom(n1.in.Underlay[0], vxlan.Port), 150*time.Millisecond)
	await(t, "a stranger's datagram is counted", func() bool { return drops(t, n1.host)["vxlan-stranger"] > before })
	n1.r.Update(n1.in)
	if now := deviceIndex(t, n1); now != made {
		t.Errorf("the device was made anew: index %d, then %d", made, now)
	}
}

func deviceIndex(t *testing.T, m *machine) int {
	t.Helper()
	d, exists, err := m.host.Link(t.Context(), vxlan.Device6)
	if err != nil || !exists {
		t.Fatal(exists, err)
	}
	return d.Index
}

// A peer that is silent is noticed through the device, whatever the device itself says, and so is its return.
func TestVXLANNoticesSilence(t *testing.T) {
	l := newLab(t)
	n1, n2 := l.n[1], l.n[2]
	up := func(m *machine) func() bool { return func() bool { return m.r.Status().Peers[0].Link.Up } }
	// The far end drops what comes: its rules say that the source is another's.
	in := n2.in
	in.Peers = []router.Peer{{Info: peer.Info{ID: id(7), State: peer.Alive}, Blocks: n2.in.Peers[0].Blocks}}
	n2.r.Update(in)
	n1.await("down", func() bool { return !up(n1)() })
	if reason := n1.r.Status().Peers[0].Link.Reason; reason == "" {
		t.Error("no reason is told")
	}
	n2.r.Update(n2.in)
	n1.await("up again", up(n1))
	n2.await("up again", up(n2))
}
