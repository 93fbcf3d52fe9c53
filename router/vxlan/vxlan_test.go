package vxlan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft/mesh/peer"
	"weft/router"
	"weft/router/host/hosttest"
)

func tunnel(n byte, endpoint string, blocks ...string) router.Tunnel {
	t := router.Tunnel{Peer: peer.ID{n}, Endpoint: netip.MustParseAddrPort(endpoint)}
	for _, b := range blocks {
		t.Blocks = append(t.Blocks, netip.MustParsePrefix(b))
	}
	return t
}

func TestApplyTouchesOnlyWhatDiffers(t *testing.T) {
	h := hosttest.New(nil)
	tr, err := Driver(h, peer.ID{1}).Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	apply := func(want ...router.Tunnel) []string {
		t.Helper()
		if err := tr.Apply(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		return h.Log()
	}
	if log := apply(); slices.ContainsFunc(log, func(s string) bool { return strings.HasPrefix(s, "set") }) {
		t.Errorf("without tunnels: %v", log)
	}
	a := tunnel(2, "192.0.2.2:6783", "10.32.4.0/22", "fd77::a20:400/118")
	b := tunnel(3, "192.0.2.3:6783", "10.32.8.0/22")
	log := apply(a)
	if len(log) != 5 || log[0] != "filter vx" || !strings.HasPrefix(log[1], "set link weft-vx") {
		t.Errorf("first tunnel: %v", log)
	}
	if log := apply(a); len(log) != 0 {
		t.Errorf("again: %v", log)
	}
	if log := apply(a, b); len(log) != 3 { // rules, forwarding entry, next hop
		t.Errorf("second tunnel: %v", log)
	}
	a.Endpoint = netip.MustParseAddrPort("192.0.2.22:6783")
	if log := apply(a, b); len(log) != 2 || !strings.Contains(log[1], "set neighbour 192.0.2.22") {
		t.Errorf("a peer that moved: %v", log)
	}
	if log := apply(b); len(log) != 4 { // rules, and three entries deleted
		t.Errorf("first tunnel gone: %v", log)
	}
	links, err := tr.Links(t.Context())
	if err != nil || len(links) != 1 || !links[0].Up || links[0].Peer != b.Peer {
		t.Errorf("links: %+v, %v", links, err)
	}
	h.DropLink(Device)
	if links, err := tr.Links(t.Context()); err != nil || links[0].Up || links[0].Reason == "" {
		t.Errorf("links without a device: %+v, %v", links, err)
	}
	apply(b)
	if log := apply(); len(log) != 2 || log[1] != "filter vx" {
		t.Errorf("last tunnel gone: %v", log)
	}
	if rs := h.Ruleset("vx"); len(rs.Chains) != 0 {
		t.Error("rules are left")
	}
	bad := tunnel(4, "[2001:db8::1]:6783", "10.32.12.0/22")
	if err := tr.Apply(t.Context(), []router.Tunnel{bad}); err == nil {
		t.Error("an IPv6 underlay was accepted")
	}
}

func TestRulesNameEachSource(t *testing.T) {
	w := tunnel(2, "192.0.2.2:6783", "10.32.4.0/22", "fd77::a20:400/118")
	w.Sources = []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("198.51.100.2")}
	got := rules([]router.Tunnel{w}).String()
	mac := MAC(peer.ID{2}).String()
	for _, want := range []string{
		"elements = { 192.0.2.2, 198.51.100.2 }", mac + " . 10.32.4.0/22", mac + " . fd77::a20:400/118",
		"udp dport 6785 ip saddr != @vx.from counter drop",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestMACsAreStationsAndDiffer(t *testing.T) {
	seen := make(map[string]bool)
	for i := range 10000 {
		mac := MAC(peer.ID{byte(i), byte(i >> 8)})
		if mac[0]&3 != 2 {
			t.Fatalf("%s is no locally given station address", mac)
		}
		if seen[mac.String()] {
			t.Fatalf("%s twice", mac)
		}
		seen[mac.String()] = true
	}
}
