package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/mesh/peer"
	"weft/prog/wire"
	"weft/router"
	"weft/test/cluster"
	"weft/test/netlab"
)

// A member is taken over: whoever holds it sends into the tunnel to b what no honest member sends, whatever a's own routes
// and guard say. Only what goes from a's blocks to b's pods arrives.
func TestRogueMemberReachesOnlyPods(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	printer := s.lab.Host("printer")
	s.lab.Link(printer.Port("eth0", "192.168.7.2/24"), s.b.Port("lan0", "192.168.7.1/24"))
	printer.DefaultVia(netip.MustParseAddr("192.168.7.1"))
	s.form()
	pods := s.pods()
	s.connected(pods)
	hostB := s.overlay(s.b)

	marker := []byte("marked by the rogue")
	inbox := s.listen(s.b, marker)
	arrives := func(p *netlab.Packet) bool {
		h, ok := p.IP()
		return ok && !p.Out && h.DstPort != 0 && netlab.Contains(marker)(p) // not the ICMP errors that quote it
	}
	there := pods[1].Capture("eth0", netlab.CaptureOptions{Keep: 64, Match: arrives})
	var elsewhere netlab.Captures
	for _, h := range []*netlab.Host{printer, pods[2].Host, s.c.Host} {
		elsewhere = append(elsewhere, h.Capture("eth0", netlab.CaptureOptions{Keep: 64, Match: arrives}))
	}

	s.must(s.a.Kill())
	s.goRogue(s.a, s.b)
	send := func(src, dst netip.AddrPort) {
		t.Helper()
		s.must(s.a.SendDevice("weft-sl", netlab.UDPPacket(src, dst, marker)))
	}
	port := func(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }
	at := netip.MustParseAddrPort
	ours4, ours6 := port(pods[0].Addrs[0], 7), port(pods[0].Addrs[1], 7)
	theirs4, theirs6 := port(pods[1].Addrs[0], 7), port(pods[1].Addrs[1], 7)
	hostC := s.overlay(s.c)

	assault := func() (sent int) {
		t.Helper()
		// Where a pod's packet must not go.
		for _, dst := range []netip.AddrPort{
			at("192.168.7.2:9"), at("192.168.7.1:9999"), at("127.0.0.1:9999"), at("127.0.0.53:9999"), s.b.AddrPort4(9999),
			s.b.AddrPort4(6783), port(pods[2].Addrs[0], 7), port(hostC[0], 9999), at("203.0.113.10:9"), at("224.0.0.1:9999"),
			at("255.255.255.255:9999"), at("169.254.1.1:9999"), at("0.0.0.0:9999"),
		} {
			send(ours4, dst)
			sent++
		}
		for _, dst := range []netip.AddrPort{
			at("[::1]:9999"), s.b.AddrPort6(9999), s.b.AddrPort6(6783), port(pods[2].Addrs[1], 7), at("[ff02::1]:9999"),
			at("[fe80::1]:9999"), at("[2001:db8:ffff::10]:9"),
		} {
			send(ours6, dst)
			sent++
		}
		// Whom a packet must not say that it is from.
		for _, src := range []netip.AddrPort{
			port(pods[2].Addrs[0], 7), port(hostC[0], 7), theirs4, port(hostB[0], 7), at("192.168.7.2:7"), at("127.0.0.1:7"),
			s.b.AddrPort4(7), s.c.AddrPort4(7), at("203.0.113.10:7"), at("0.0.0.0:7"), at("255.255.255.255:7"),
		} {
			send(src, theirs4)
			sent++
		}
		for _, src := range []netip.AddrPort{
			port(pods[2].Addrs[1], 7), theirs6, at("[::1]:7"), s.b.AddrPort6(7), at("[fe80::1]:7"), at("[::]:7"),
		} {
			send(src, theirs6)
			sent++
		}
		return sent
	}
	// What a pod may send is behind all that it may not.
	arrived := uint64(0)
	proof := func() {
		t.Helper()
		send(ours4, theirs4)
		send(ours6, theirs6)
		arrived += 2
		s.must(there.WaitFor(s.within(patience), arrived))
	}

	before := s.metrics(s.b)
	sent := assault()
	send(ours4, port(hostB[0], 9999)) // to the host itself: only what it was asked for, and ICMP
	send(ours6, port(hostB[1], 9999))
	send(ours4, port(hostB[0], 6783))
	proof()
	s.must(cluster.Poll(s.within(patience), func() error {
		now := s.metrics(s.b)
		dropped := now.Events("sleeve", "peer_drop_source", "peer_drop_destination") - before.Events("sleeve", "peer_drop_source", "peer_drop_destination")
		guarded := now.Events("guard", "drop_host-access", "drop_weft-port") - before.Events("guard", "drop_host-access", "drop_weft-port")
		if dropped < float64(sent) || guarded < 3 {
			return fmt.Errorf("%v of %d and %v of 3 packets were counted:\n%s", dropped, sent, guarded, differences(before, now))
		}
		return nil
	}))
	// The same while nobody guards b but its sleeve.
	s.must(s.b.Kill())
	s.b.DeleteTables()
	sent += assault()
	proof()

	there.Stop()
	elsewhere.Stop()
	if there.Count() != arrived {
		t.Errorf("%d packets arrived, want %d:\n%s", there.Count(), arrived, netlab.Captures{there}.Describe(10))
	}
	if elsewhere.Count() > 0 {
		t.Errorf("elsewhere arrived:\n%s", elsewhere.Describe(10))
	}
	if got := inbox(); len(got) > 0 {
		t.Errorf("b itself got packets from %v", got)
	}
	t.Logf("%d packets sent", sent)

	// An honest daemon takes the wire back.
	began := time.Now()
	s.must(s.a.Up())
	s.must(s.b.Up())
	s.whole()
	s.connected(pods)
	s.took("rogue replaced", began)
}

// addrPort is the address with a port that matters to nobody.
func addrPort(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 7) }

// goRogue takes over the wire of m as its daemon would, and says that all the world is behind victim.
func (s *story) goRogue(m, victim *cluster.Machine) {
	s.Helper()
	st, err := victim.Status()
	s.must(err)
	id, err := peer.Parse(st.Node.ID)
	s.must(err)
	c, err := wire.Ensure(s.within(patience), wire.Options{Socket: m.State() + "/wire.sock"})
	s.must(err)
	s.Cleanup(func() { _ = c.Close() })
	s.must(c.SetTunnels(s.within(patience), []router.Tunnel{{Peer: id, MTU: 1400, Blocks: []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"),
	}}}))
}

// overlay is a machine's own addresses in the container network.
func (s *story) overlay(m *cluster.Machine) []netip.Addr {
	s.Helper()
	st, err := m.Status()
	s.must(err)
	return st.Node.Overlay
}

// listen hears UDP port 9999 on every address of the machine; the function tells from where the marker came so far.
func (s *story) listen(m *cluster.Machine, marker []byte) func() []string {
	s.Helper()
	c, err := m.ListenPacket("udp", ":9999")
	s.must(err)
	var mu sync.Mutex
	var from []string
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2048)
		for {
			n, a, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if strings.Contains(string(b[:n]), string(marker)) {
				mu.Lock()
				from = append(from, a.String())
				mu.Unlock()
			}
		}
	})
	s.Cleanup(func() { _ = c.Close(); wg.Wait() })
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return from
	}
}

// Pods reach no port of weft on any machine. Another machine's pods may ping a host, and answer it; more only with
// --host-access all.
func TestPodsAndTheHost(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.machines = s.machines[:2]
	s.form()
	pods := s.pods()
	s.connected(pods)
	a, b := s.overlay(s.a), s.overlay(s.b)

	serve := func(h *netlab.Host, port string) {
		t.Helper()
		c := h.Command(programs.Probe, "serve", "-tcp", port, "-udp", port).Quiet()
		s.must(c.Start())
		_, err := c.WaitOutput(s.within(patience), "listening on tcp "+port)
		s.must(err)
	}
	serve(s.b.Host, "8080")
	serve(pods[0].Host, "8080")
	reaches := func(h *netlab.Host, a netip.Addr, port uint16) bool {
		ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
		defer cancel()
		c, err := h.Dial(ctx, "tcp", netip.AddrPortFrom(a, port).String())
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}
	all := func(want bool, from *netlab.Host, port uint16, addrs ...netip.Addr) {
		t.Helper()
		var wg sync.WaitGroup
		for _, a := range addrs {
			wg.Go(func() {
				reached := reaches(from, a, port)
				for end := time.Now().Add(patience); want && !reached && time.Now().Before(end); {
					reached = reaches(from, a, port) // a loaded machine
				}
				if reached != want {
					t.Errorf("%s reaches %s port %d: %v, want %v", from, a, port, reached, want)
				}
			})
		}
		wg.Wait()
	}

	ports := func() {
		t.Helper()
		gateway := netip.MustParseAddr("169.254.1.1")
		for _, port := range []uint16{6782, 6783} {
			all(false, pods[0].Host, port, append(append(append([]netip.Addr{gateway}, a...), b...), append(s.a.Addrs(), s.b.Addrs()...)...)...)
		}
	}
	ports()
	s.must(pods[0].WaitPing(s.within(patience), b[0])) // a host answers pings
	s.must(pods[0].WaitPing(s.within(patience), b[1]))
	all(false, pods[0].Host, 8080, b...)        // and nothing else
	all(true, s.b.Host, 8080, pods[0].Addrs...) // it may ask, and is answered
	all(true, pods[1].Host, 8080, b...)         // its own pods are its own affair
	all(true, s.a.Host, 8080, pods[0].Addrs...)

	s.must(s.b.Stop())
	s.must(s.b.Up("--host-access", "all"))
	s.whole()
	s.must(cluster.Poll(s.within(patience), func() error {
		if !reaches(pods[0].Host, b[0], 8080) {
			return fmt.Errorf("%s does not reach %s with --host-access all", pods[0], b[0])
		}
		return nil
	}))
	all(true, pods[0].Host, 8080, b...)
	ports()
	// UDP to the weft port, which a wire would not answer anyway, is stopped where it begins.
	marker := []byte("marked by the pod")
	watch := s.lab.CaptureAll(netlab.CaptureOptions{Match: netlab.Contains(marker)})
	for _, to := range []netip.Addr{s.a.Addr4(), s.b.Addr4(), b[0], s.b.Addr6()} {
		c, err := pods[0].Dial(t.Context(), "udp", net.JoinHostPort(to.String(), "6783"))
		s.must(err)
		_, _ = c.Write(marker)
		_ = c.Close()
	}
	s.must(pods[0].WaitPing(s.within(patience), s.sites.Internet.Addr4())) // is behind them
	watch.Stop()
	if watch.Count() > 0 {
		t.Errorf("on the cables:\n%s", watch.Describe(5))
	}
}
