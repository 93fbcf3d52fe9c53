package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/prog/control"
	"weft/router/host"
	"weft/router/wireguard"
	"weft/test/cluster"
	"weft/test/netlab"
)

// A public machine and two behind NATs of their own, of the worst kind. WireGuard in the kernels carries where one of a pair can be dialled: the
// hidden end dials, the public one learns where it is heard and keeps to it, and the hole is kept open. Where nobody can
// dial the sleeve carries, and status says why. The NAT forgets, and the device of the public machine is deleted: the hidden
// ends dial again.
func TestWireGuardAcrossNAT(t *testing.T) {
	needWireGuard(t)
	t.Parallel() // it mostly waits
	s := &story{T: t, lab: netlab.New(t)}
	world := netlab.NewInternet(s.lab)
	hub := world.Home("hub", netlab.Public)
	x, y := world.Home("x", netlab.BehindHard), world.Home("y", netlab.BehindHard)
	for _, h := range []*netlab.Home{hub, x, y} {
		s.machines = append(s.machines, cluster.On(h.Host, programs))
	}
	s.a, s.b, s.c = s.machines[0], s.machines[1], s.machines[2]
	watched := s.watch(netip.MustParsePrefix("10.32.0.0/12"))
	began := time.Now()
	s.form()
	pods := s.pods()
	s.connected(pods)
	for _, home := range []*netlab.Home{x, y} {
		m := s.machines[1]
		if home == y {
			m = s.machines[2]
		}
		if p := s.carried(s.a, m, wireguard.Name); p.Endpoint.Addr() != home.Outside || p.Endpoint.Port() == wireguard.Port {
			t.Errorf("the hub hears %s at %s, which is not outside of the NAT at %s", m, p.Endpoint, home.Outside)
		}
		if p := s.carried(m, s.a, wireguard.Name); p.Endpoint != netip.AddrPortFrom(hub.Addr4(), wireguard.Port) {
			t.Errorf("%s reaches the hub at %s", m, p.Endpoint)
		}
		for k, p := range s.device(m).Peers {
			if p.Endpoint.IsValid() && p.Keepalive == 0 {
				t.Errorf("nothing keeps the NAT of %s open for %s: %+v", m, k.Base64()[:8], p)
			}
		}
	}
	s.took("both hidden machines carried by WireGuard", began)
	const why = "both ends are behind a NAT"
	for _, pair := range [][2]*cluster.Machine{{s.b, s.c}, {s.c, s.b}} {
		if p := s.carried(pair[0], pair[1], "sleeve"); !strings.Contains(p.Reason, why) {
			t.Errorf("%s does not say why WireGuard does not carry to %s: %+v", pair[0], pair[1], p)
		}
		var detail control.PeerDetail
		s.must(pair[0].JSON(&detail, "peer", "show", pair[1].Name()))
		found := false
		for _, l := range detail.Links {
			found = found || l.Transport == wireguard.Name && strings.Contains(l.Reason, why)
		}
		if !found {
			t.Errorf("peer show does not say why it is not WireGuard: %+v", detail.Links)
		}
	}

	was := s.carried(s.a, s.b, wireguard.Name).Endpoint
	began = time.Now()
	x.Box.Rebind("eth0")
	s.must(cluster.Poll(s.within(startPatience), func() error {
		st, err := s.a.Status()
		for _, p := range st.Peers {
			if p.Name == s.b.Name() && (p.Transport != wireguard.Name || p.Endpoint == was) {
				err = fmt.Errorf("the hub hears %s by %s at %s", s.b, p.Transport, p.Endpoint)
			}
		}
		return err
	}))
	s.must(pods[0].WaitPing(s.within(patience), pods[1].Addrs[0]))
	s.took("the NAT forgot, and the hub hears the machine elsewhere", began)

	began = time.Now()
	s.a.DeleteLink(wireguard.KernelDevice)
	s.connected(pods)
	s.took("device of the dialled end deleted", began)
	for _, m := range s.machines[1:] {
		s.carried(s.a, m, wireguard.Name)
		s.carried(m, s.a, wireguard.Name)
	}
	s.took("and back on WireGuard", began)
	s.connected(pods)
	s.sealed(watched)
}

// device is what a machine's kernel WireGuard holds.
func (s *story) device(m *cluster.Machine) wireguard.State {
	s.Helper()
	h, err := host.Open(m.Path(), nil)
	s.must(err)
	defer h.Close()
	st, err := wireguard.Kernel(h, wireguard.KernelDevice).State(context.WithoutCancel(s.Context()))
	s.must(err)
	return st
}
