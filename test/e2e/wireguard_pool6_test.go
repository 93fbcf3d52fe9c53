package e2e

import (
	"net/netip"
	"testing"
	"time"

	"weft/router/wireguard"
	"weft/test/cluster"
)

// A cluster of IPv6 alone uses WireGuard of the kernel like any other: tunnels are tested by IPv6. The port is shut, and the
// sleeve takes over: that the tunnel is dead is noticed by IPv6, too.
func TestWireGuardIPv6Alone(t *testing.T) {
	needWireGuard(t)
	t.Parallel() // it mostly waits
	s := tell(t)
	s.machines = s.machines[:2]
	pool := netip.MustParsePrefix("fd77:1:2::/48")
	watched := s.watch(pool)
	s.form("--pool", "none", "--pool6", pool.String())
	pods := s.pods()
	s.connected(pods)
	for _, pair := range [][2]*cluster.Machine{{s.a, s.b}, {s.b, s.a}} {
		if p := s.carried(pair[0], pair[1], wireguard.Name); p.MTU != 1420 || p.RTTms <= 0 || p.KeyAgeS < 0 {
			t.Errorf("by WireGuard: %+v", p)
		}
		for _, p := range s.device(pair[0]).Peers {
			for _, a := range p.Allowed {
				if !a.Addr().Is6() {
					t.Errorf("IPv4 in a cluster of IPv6: %v", p.Allowed)
				}
			}
		}
	}
	s.connected(pods)
	// The route that tests take carries nothing else: an address of nobody is refused.
	if _, err := pods[0].Ping(s.within(time.Second), netip.MustParseAddr("fd77:1:2:ffff::77")); err == nil {
		t.Error("an address of nobody answers")
	}
	began := time.Now()
	cut := s.sites.Router.BlockUDP(wireguard.Port)
	s.by("sleeve")
	s.connected(pods)
	s.took("the port was shut", began)
	cut.Heal()
	began = time.Now()
	s.must(s.a.Kill())
	s.must(s.a.KillWire(s.within(patience)))
	s.must(s.a.Up())
	s.whole()
	s.by(wireguard.Name)
	s.took("the port was opened, daemon and wire killed: back on WireGuard", began)
	s.connected(pods)
	s.sealed(watched)
}
