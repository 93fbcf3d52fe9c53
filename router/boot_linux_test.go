package router_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weft/router"
	"weft/router/host/hosttest"
)

// What refuses comes before anything else and lets nothing pass: no addresses, no forwarding, no devices.
func TestRefuseSetsRoutesAndGuardOnly(t *testing.T) {
	h := hosttest.New(map[string]string{"net/ipv4/ip_forward": "0", "net/ipv6/conf/all/forwarding": "0"})
	made, err := router.Refuse(t.Context(), h, router.Input{Pools: pools})
	if err != nil || !made {
		t.Fatalf("made %v, %v", made, err)
	}
	want := []string{
		"set route unreachable 10.32.0.0/12 metric 2147418112", "set route unreachable fd77::/96 metric 2147418112", "filter",
	}
	if diff := cmp.Diff(want, h.Log()); diff != "" {
		t.Errorf("what it did (-want +got):\n%s", diff)
	}
}

// On the kernel: a second time changes nothing, and a guard that knows pods stays as it is.
func TestRefuseLeavesAGuardAlone(t *testing.T) {
	l := newLab(t)
	m := l.n[1]
	p := m.pod("a", 10)
	echo(t, p.NS, netip.AddrPortFrom(netip.IPv6Unspecified(), 7))
	before := dump(t, m)
	made, err := router.Refuse(t.Context(), m.host.Host, router.Input{Pools: m.in.Pools})
	if err != nil || made {
		t.Fatalf("made %v, %v", made, err)
	}
	if diff := cmp.Diff(before, dump(t, m)); diff != "" {
		t.Errorf("it changed the machine:\n%s", diff)
	}
	reach(t, "host to own pod", m.ns, p.v4, m.in.Hosts[0].String())
}
