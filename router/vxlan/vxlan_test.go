package vxlan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/mesh/peer"
	"weft/router"
	"weft/router/host"
	"weft/router/host/hosttest"
	"weft/router/pulse"
)

func to(n byte, endpoint string, blocks ...string) router.Tunnel {
	t := router.Tunnel{Peer: peer.ID{n}, Endpoint: netip.MustParseAddrPort(endpoint)}
	for _, b := range blocks {
		t.Blocks = append(t.Blocks, netip.MustParsePrefix(b))
	}
	return t
}

// directory gives every peer the address 5 of 10.32.4*N.
type directory struct{}

func (directory) Rest() time.Duration { return 0 }
func (directory) Own() netip.Addr     { return netip.MustParseAddr("10.32.0.1") }
func (directory) Address(id peer.ID) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 32, 4 * (id[0] - 1), 5})
}

// answering is a socket to machines that answer as long as they are not silent.
type answering struct {
	silent  bool
	answers []host.Echo
}

func (a *answering) Send(_ int, _, to netip.Addr, seq uint16, _ int) error {
	if !a.silent {
		a.answers = append(a.answers, host.Echo{From: to, Seq: seq, At: time.Now()})
	}
	return nil
}

func (a *answering) Receive() []host.Echo {
	out := a.answers
	a.answers = nil
	return out
}

func (a *answering) Close() error { return nil }

// open makes a transport with a socket of the test's.
func open(t *testing.T, d router.Driver) (*transport, *answering) {
	t.Helper()
	opened, err := d.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tr, a := opened.(*transport), &answering{}
	tr.openEcho = func() (echoer, error) { return a, nil }
	return tr, a
}

func TestApplyTouchesOnlyWhatDiffers(t *testing.T) {
	h := hosttest.New(nil)
	tr, _ := open(t, Driver(h, peer.ID{1}, directory{}, nil))
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
	a := to(2, "192.0.2.2:6783", "10.32.4.0/22", "fd77::a20:400/118")
	b := to(3, "192.0.2.3:6783", "10.32.8.0/22")
	log := apply(a)
	if len(log) != 6 || log[0] != "filter vx" || !strings.HasPrefix(log[1], "set link weft-vx") {
		t.Errorf("first tunnel: %v", log)
	}
	if log := apply(a); len(log) != 0 {
		t.Errorf("again: %v", log)
	}
	if log := apply(a, b); len(log) != 4 { // rules, forwarding entry, next hop, own address
		t.Errorf("second tunnel: %v", log)
	}
	a.Endpoint = netip.MustParseAddrPort("192.0.2.22:6783")
	if log := apply(a, b); len(log) != 2 || !strings.Contains(log[1], "set neighbour 192.0.2.22") {
		t.Errorf("a peer that moved: %v", log)
	}
	if log := apply(b); len(log) != 5 { // rules, and four entries deleted
		t.Errorf("first tunnel gone: %v", log)
	}
	if log := apply(); len(log) != 2 || log[1] != "filter vx" {
		t.Errorf("last tunnel gone: %v", log)
	}
	if rs := h.Ruleset("vx"); len(rs.Chains) != 0 {
		t.Error("rules are left")
	}
	bad := to(4, "[2001:db8::1]:6783", "10.32.12.0/22")
	if err := tr.Apply(t.Context(), []router.Tunnel{bad}); err == nil {
		t.Error("an IPv6 underlay was accepted")
	}
}

func TestRulesNameEachSource(t *testing.T) {
	w := to(2, "192.0.2.2:6783", "10.32.4.0/22", "fd77::a20:400/118")
	w.Sources = []netip.Addr{netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("198.51.100.2")}
	tr, _ := open(t, Driver(hosttest.New(nil), peer.ID{1}, directory{}, nil))
	got := tr.rules([]router.Tunnel{w}).String()
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

func TestUpOnceAnsweredAndNotWithoutDeviceOrAddress(t *testing.T) {
	h := hosttest.New(nil)
	tr, peers := open(t, Driver(h, peer.ID{1}, directory{}, nil))
	peers.silent = true
	b := to(3, "192.0.2.3:6783", "10.32.8.0/22")
	b.MTU = 1420
	stranger := to(9, "192.0.2.9:6783", "10.32.12.0/22") // its address is in no block of its own
	look := func() []router.Link {
		t.Helper()
		links, err := tr.Links(t.Context())
		if err != nil || len(links) != 2 || links[0].Peer != b.Peer {
			t.Fatalf("links: %+v, %v", links, err)
		}
		return links
	}
	if err := tr.Apply(t.Context(), []router.Tunnel{b, stranger}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if l := look(); l[0].Up || !strings.Contains(l[0].Reason, "no answer") {
			t.Fatalf("before an answer: %+v", l)
		}
	}
	tr.tunnels[b.Peer].pulse.Hurry()
	peers.silent = false
	look()
	l := look()
	if !l[0].Up || l[0].RTT == 0 || l[0].LastSeen.IsZero() || l[0].Reason != "" {
		t.Fatalf("after an answer: %+v", l[0])
	}
	if l[1].Up || !strings.Contains(l[1].Reason, "no address of its own") {
		t.Errorf("a peer that cannot be tested: %+v", l[1])
	}
	if slices.ContainsFunc(h.Log(), func(s string) bool { return strings.Contains(s, "10.32.32.5") }) {
		t.Error("an address that is not the peer's leads to it")
	}
	h.DropLink(Device)
	if l := look(); l[0].Up || l[0].Reason == "" {
		t.Errorf("without a device: %+v", l)
	}
}

// One device carries two tunnels and its counters say nothing about either: only the one to which something went is tested
// as one in use.
func TestOnePeersTrafficIsNotAnothers(t *testing.T) {
	h := hosttest.New(nil)
	tr, _ := open(t, Driver(h, peer.ID{1}, directory{}, nil))
	a, b := to(2, "192.0.2.2:6783", "10.32.4.0/22"), to(3, "192.0.2.3:6783", "10.32.8.0/22")
	if err := tr.Apply(t.Context(), []router.Tunnel{a, b}); err != nil {
		t.Fatal(err)
	}
	now, bytes := time.Now(), uint64(0)
	look := func(more uint64) (pulse.Traffic, pulse.Traffic) {
		t.Helper()
		now, bytes = now.Add(500*time.Millisecond), bytes+more
		traffic, err := tr.traffic(t.Context(), now, bytes)
		if err != nil {
			t.Fatal(err)
		}
		return traffic(tr.tunnels[a.Peer]), traffic(tr.tunnels[b.Peer])
	}
	sent := func(to router.Tunnel, ago time.Duration) { h.SetSent(Device, MAC(to.Peer).String(), ago) }
	look(0)
	sent(a, 0)
	sent(b, time.Minute)
	tr.tunnels[b.Peer].asked = now.Add(-10 * time.Second)
	if ta, tb := look(100); ta != pulse.Quiet || tb != pulse.Quiet {
		t.Errorf("100 bytes: %d and %d", ta, tb)
	}
	if ta, tb := look(100 << 10); ta != pulse.Flows || tb != pulse.Quiet {
		t.Errorf("traffic to one: %d and %d", ta, tb)
	}
	sent(a, 300*time.Millisecond)
	if ta, _ := look(100 << 10); ta != pulse.Flows {
		t.Errorf("a flow that has just paused: %d", ta)
	}
	sent(b, 300*time.Millisecond)
	if _, tb := look(100 << 10); tb != pulse.Perhaps {
		t.Errorf("something went there a while ago: %d", tb)
	}
	tr.tunnels[b.Peer].asked = now.Add(190 * time.Millisecond)
	if _, tb := look(100 << 10); tb != pulse.Quiet {
		t.Errorf("our own echo went there: %d", tb)
	}
}

func TestIPv6UnderlayHasADeviceOfItsOwn(t *testing.T) {
	h := hosttest.New(nil)
	tr, _ := open(t, Driver6(h, peer.ID{1}, directory{}, nil))
	b := to(3, "[2001:db8::3]:6783", "10.32.8.0/22")
	b.Sources = []netip.Addr{netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("2001:db8::4")}
	if err := tr.Apply(t.Context(), []router.Tunnel{b}); err != nil {
		t.Fatal(err)
	}
	got, log := h.Ruleset("vx6").String(), strings.Join(h.Log(), "\n")
	for _, want := range []string{"elements = { 2001:db8::4, 2001:db8::3 }", "udp dport 6785 ip6 saddr != @vx6.from counter drop", `iifname "weft-vx6" goto`} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if !strings.Contains(log, "set neighbour 2001:db8::3") || !strings.Contains(log, "set link weft-vx6") {
		t.Errorf("device and entry: %s", log)
	}
	b.Endpoint = netip.MustParseAddrPort("192.0.2.3:6783")
	if err := tr.Apply(t.Context(), []router.Tunnel{b}); err == nil {
		t.Error("an IPv4 underlay was accepted")
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
