package e2e

import (
	"encoding/base64"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft/router/host"
	"weft/router/wireguard"
	"weft/test/cluster"
	"weft/test/netlab"
)

// The kernel's own WireGuard takes the text that weft client add prints and enters: two implementations that have nothing in
// common understand each other, in both families, with full packets, through the daemon's death, until it is removed.
func TestWireGuardOfTheKernelEntersAsClient(t *testing.T) {
	needWireGuard(t)
	t.Parallel() // it mostly waits
	s := tell(t)
	s.machines = s.machines[:2]
	watched := s.watch(netip.MustParsePrefix("10.32.0.0/12"))
	s.form()
	pods := s.pods()
	config, err := s.a.CLI("client", "add", "laptop")
	s.must(err)
	laptop := s.sites.Internet
	own, dev := s.stockKernel(laptop, config)
	for _, p := range pods {
		for _, a := range p.Addrs {
			s.must(laptop.WaitPing(s.within(patience), a))
		}
		for _, a := range own {
			s.must(p.WaitPing(s.within(patience), a))
		}
	}
	r := s.transfer(pods[1], &cluster.Pod{Host: laptop, Addrs: own}, own[0])
	s.flows(r, 1<<20)
	s.must(s.a.Kill())
	s.flows(r, 1<<19)
	s.finish(r)
	s.must(s.a.Up())
	_, err = s.a.WaitReady(s.within(startPatience), 2)
	s.must(err)
	s.must(laptop.WaitPing(s.within(patience), pods[1].Addrs[0]))
	st, err := dev.State(s.Context())
	s.must(err)
	for _, p := range st.Peers {
		if p.Handshake.IsZero() || p.Received < 1<<20 {
			t.Errorf("the client's device says %+v", p)
		}
	}
	_, err = s.a.CLI("client", "remove", "laptop")
	s.must(err)
	if _, err := laptop.Ping(s.within(time.Second), pods[0].Addrs[0]); err == nil {
		t.Error("a client that was removed still reaches a pod")
	}
	s.connected(pods)
	s.sealed(watched)
}

// stockKernel makes a device of the kernel from the text that weft printed; it returns the client's addresses.
func (s *story) stockKernel(h *netlab.Host, config string) (own []netip.Addr, dev wireguard.Device) {
	s.Helper()
	var c wireguard.Config
	var q wireguard.Change
	key := func(text string) *wireguard.Key {
		b, err := base64.StdEncoding.DecodeString(text)
		s.must(err)
		return (*wireguard.Key)(b)
	}
	var addresses, routes []netip.Prefix
	for line := range strings.Lines(config) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " = ")
		switch name {
		case "PrivateKey":
			c.Private = key(value)
		case "PublicKey":
			q.Public = *key(value)
		case "PresharedKey":
			q.Preshared = key(value)
		case "Endpoint":
			at, err := netip.ParseAddrPort(value)
			s.must(err)
			q.Endpoint = at
		case "PersistentKeepalive":
			seconds, err := strconv.Atoi(value)
			s.must(err)
			every := time.Duration(seconds) * time.Second
			q.Keepalive = &every
		case "Address":
			addresses = s.prefixes(value)
		case "AllowedIPs":
			routes = s.prefixes(value)
			q.Allowed = routes
		}
	}
	c.Peers = []wireguard.Change{q}
	machine, err := host.Open(h.Path(), nil)
	s.must(err)
	s.Cleanup(func() { _ = machine.Close() })
	dev = wireguard.Kernel(machine, "wg0")
	s.must(dev.Ensure(s.Context(), 1420))
	s.must(dev.Configure(s.Context(), c))
	for _, p := range addresses {
		h.AddAddr("wg0", p.String())
		own = append(own, p.Addr())
	}
	for _, p := range routes {
		h.RouteDevice(p, "wg0")
	}
	return own, dev
}
