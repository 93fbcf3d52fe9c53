package e2e

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft/prog/control"
	"weft/router/host"
	"weft/test/cluster"
)

// needWireGuard skips where the kernel has none; the virtual machines of make test-vm have it.
func needWireGuard(t *testing.T) {
	t.Helper()
	if err := host.ProbeWireGuard(t.Context()); err != nil {
		t.Skipf("%v. Run: make test-vm", err)
	}
}

// carried waits until a machine reaches another by a transport.
func (s *story) carried(m, by *cluster.Machine, transport string) control.Peer {
	s.Helper()
	var found control.Peer
	_, err := m.WaitFor(s.within(startPatience), func(st control.Status) error {
		for _, p := range st.Peers {
			if found = p; p.Name == by.Name() && p.Transport == transport && p.Path != control.PathNone {
				return nil
			}
		}
		return fmt.Errorf("%s is not carried by %s: %+v", by, transport, st.Peers)
	})
	s.must(err)
	return found
}

// Two machines have WireGuard in their kernels and use it, a third has not and is reached by the sleeve. What then befalls
// the two: daemon and wire killed, the port shut and opened, the device deleted. No packet is ever in clear.
func TestWireGuardBesideSleeve(t *testing.T) {
	needWireGuard(t)
	t.Parallel() // it mostly waits
	s := tell(t)
	watched := s.watch(netip.MustParsePrefix("10.32.0.0/12"))
	token, err := s.a.Found(s.within(startPatience))
	s.must(err)
	s.must(s.b.Up("--join", token))
	s.must(s.c.Up("--join", token, "--transport", "sleeve"))
	s.whole()
	began := time.Now()
	pods := s.pods()
	s.connected(pods)
	for _, pair := range [][2]*cluster.Machine{{s.a, s.b}, {s.b, s.a}} {
		p := s.carried(pair[0], pair[1], "wireguard")
		if !p.Encrypted || p.Reason == "" || p.MTU != 1420 {
			t.Errorf("by WireGuard: %+v", p)
		}
		all, err := pair[0].Metrics(s.Context())
		s.must(err)
		for _, name := range []string{"receive_bytes_total", "transmit_bytes_total", "key_age_seconds", "rtt_seconds"} {
			labels := fmt.Sprintf("peer=%q", p.ID)
			if strings.HasSuffix(name, "total") { // each transport counts by itself
				labels += `,transport="wireguard"`
			}
			if v, ok := all[fmt.Sprintf("weft_peer_%s{%s}", name, labels)]; !ok || v < 0 || strings.HasSuffix(name, "total") && v == 0 {
				t.Errorf("%s is %v of a peer that WireGuard carries", name, v)
			}
		}
	}
	t.Logf("both ends chose WireGuard within %.1f s", time.Since(began).Seconds())
	for _, pair := range [][2]*cluster.Machine{{s.a, s.c}, {s.c, s.a}} {
		s.carried(pair[0], pair[1], "sleeve")
	}
	s.connected(pods)

	// Without anybody at home the kernel goes on.
	s.must(s.a.Kill())
	s.must(s.a.KillWire(s.within(patience)))
	s.must(pods[0].WaitPing(s.within(patience), pods[1].Addrs[0]))
	s.must(s.a.Up())
	_, err = s.a.WaitReady(s.within(startPatience), 3)
	s.must(err)
	s.must(pods[0].WaitPing(s.within(patience), pods[1].Addrs[0]))
	s.carried(s.a, s.b, "wireguard")

	// The port is shut: the sleeve takes over; and gives back when it is open again.
	f := s.floodPods(pods[0], pods[1].Addrs[0], 100, 40*time.Second)
	cut := s.b.BlockUDP(6784)
	s.carried(s.a, s.b, "sleeve")
	cut.Heal()
	s.carried(s.a, s.b, "wireguard")
	s.carried(s.b, s.a, "wireguard")
	t.Logf("port shut and opened: %s", strings.TrimSpace(f()))

	s.a.DeleteLink("weft-wg")
	s.must(pods[0].WaitPing(s.within(patience), pods[1].Addrs[0]))
	s.carried(s.a, s.b, "wireguard")
	s.connected(pods)
	s.sealed(watched)
}

// floodPods pings so many times a second until the result is asked for, or the time is over.
func (s *story) floodPods(from *cluster.Pod, to netip.Addr, rate int, d time.Duration) (result func() string) {
	s.Helper()
	c := from.Command(programs.Probe, "flood", "-rate", strconv.Itoa(rate), "-for", d.String(), "-w", "5s", to.String()).Quiet()
	s.must(c.Start())
	return func() string {
		_ = c.Stop(startPatience)
		return c.Stdout()
	}
}
