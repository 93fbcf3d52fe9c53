package netlab_test

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/test/netlab"
)

// ask sends a datagram from an inside socket to a server and returns where the server sees it come from.
func ask(t *testing.T, inside net.PacketConn, server net.PacketConn) netip.AddrPort {
	t.Helper()
	to := server.LocalAddr().(*net.UDPAddr).AddrPort()
	if _, err := inside.WriteTo([]byte("who am I"), net.UDPAddrFromAddrPort(to)); err != nil {
		t.Fatal(err)
	}
	_ = server.SetReadDeadline(time.Now().Add(patience))
	_, from, err := server.ReadFrom(make([]byte, 64))
	if err != nil {
		t.Fatalf("the server at %v: %v", to, err)
	}
	return from.(*net.UDPAddr).AddrPort()
}

// letIn lists which of the datagrams that these sockets send to a mapping come through. One last word from a socket that the
// inside talked to marks the end, so nothing waits for what will not come; it may overtake those of others, so that many as
// should come are waited for.
func letIn(t *testing.T, inside net.PacketConn, mapping netip.AddrPort, last net.PacketConn, from map[string]net.PacketConn, want int) (in []string) {
	t.Helper()
	for name, c := range from {
		if _, err := c.WriteTo([]byte(name), net.UDPAddrFromAddrPort(mapping)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := last.WriteTo([]byte("the end"), net.UDPAddrFromAddrPort(mapping)); err != nil {
		t.Fatal(err)
	}
	_ = inside.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 64)
	for ended := false; !ended || len(in) < want; {
		n, _, err := inside.ReadFrom(buf)
		if err != nil {
			t.Fatalf("inside, after %q: %v", in, err)
		}
		if string(buf[:n]) == "the end" {
			ended = true
		} else {
			in = append(in, string(buf[:n]))
		}
	}
	slices.Sort(in)
	return in
}

func socket(t *testing.T, h *netlab.Host, address string) net.PacketConn {
	t.Helper()
	c, err := h.ListenPacket("udp4", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Two servers tell what they see of one inside socket, and who may answer it: that is all by which kinds of NAT differ.
func TestNATMapsAndFilters(t *testing.T) {
	const otherPort, otherHost = "other port", "other host"
	for kind, want := range map[netlab.NATKind]struct {
		sameMapping bool
		in          []string // of those that were not asked, besides the one that was
	}{
		netlab.FullCone:            {true, []string{otherHost, otherPort}},
		netlab.AddressRestricted:   {true, []string{otherPort}},
		netlab.EndpointIndependent: {true, nil},
		netlab.Symmetric:           {false, nil},
	} {
		t.Run(kind.String(), func(t *testing.T) {
			inside, _, servers := behindNAT(t, kind)
			one := socket(t, inside, "192.168.1.2:6783")
			stun, second := socket(t, servers[0], "203.0.113.10:6783"), socket(t, servers[0], "203.0.113.10:6784")
			stranger := socket(t, servers[1], "203.0.113.11:6783")
			mapping := ask(t, one, stun)
			if mapping.Addr() != netip.MustParseAddr("203.0.113.1") || mapping.Port() == 6783 {
				t.Errorf("the server sees %v", mapping)
			}
			if again := ask(t, one, stun); again != mapping {
				t.Errorf("the same server sees %v, then %v", mapping, again)
			}
			others := map[string]net.PacketConn{otherPort: second, otherHost: stranger}
			got := letIn(t, one, mapping, stun, others, len(want.in))
			if !slices.Equal(got, want.in) {
				t.Errorf("it lets in %q, want %q", got, want.in)
			}
			same := 0 // a random port may be what it was, once
			for _, server := range others {
				if ask(t, one, server) == mapping {
					same++
				}
			}
			if (same == len(others)) != want.sameMapping {
				t.Errorf("%d of %d others see %v as the first server does", same, len(others), mapping)
			}
			// Now that it talked to all, all are let in.
			if want.sameMapping {
				got = letIn(t, one, mapping, stun, others, len(others))
				if !slices.Equal(got, []string{otherHost, otherPort}) {
					t.Errorf("of those that were talked to it lets in %q", got)
				}
			}

			// A second socket gets a mapping of its own, and the first keeps its.
			other := socket(t, inside, "192.168.1.2:7000")
			if m := ask(t, other, stun); m == mapping {
				t.Errorf("two inside sockets share %v", m)
			}
			if again := ask(t, one, stun); again != mapping {
				t.Errorf("the mapping moved from %v to %v", mapping, again)
			}
		})
	}
}

// Two machines of one home use the same port: each has one mapping towards everybody, which a masquerade would not give.
func TestNATOfTwoMachinesWithOnePort(t *testing.T) {
	lab := netlab.New(t)
	net := netlab.NewInternet(lab)
	home, one, two := net.Home("a", netlab.BehindStrict), net.Home("s1", netlab.Public), net.Home("s2", netlab.Public)
	neighbour := home.Neighbour("b", 1)
	s1, s2 := socket(t, one.Host, "198.18.2.2:6783"), socket(t, two.Host, "198.18.3.2:6783")
	a, b := socket(t, home.Host, "192.168.1.2:6783"), socket(t, neighbour, "10.254.1.2:6783")
	a1, b1 := ask(t, a, s1), ask(t, b, s1)
	a2, b2 := ask(t, a, s2), ask(t, b, s2)
	if a1 != a2 || b1 != b2 || a1 == b1 || a1.Addr() != home.Outside || b1.Addr() != home.Outside {
		t.Errorf("one is seen at %v and %v, the other at %v and %v", a1, a2, b1, b2)
	}
}

func TestRebindGivesNewMappings(t *testing.T) {
	for _, kind := range []netlab.NATKind{netlab.FullCone, netlab.EndpointIndependent, netlab.Symmetric} {
		t.Run(kind.String(), func(t *testing.T) {
			inside, nat, servers := behindNAT(t, kind)
			one, stun := socket(t, inside, "192.168.1.2:6783"), socket(t, servers[0], "203.0.113.10:6783")
			before := ask(t, one, stun)
			nat.Rebind("wan")
			after := ask(t, one, stun)
			if before == after { // a random port may be what it was, once
				nat.Rebind("wan")
				after = ask(t, one, stun)
			}
			if before == after {
				t.Errorf("still %v", after)
			}
			// The old hole is shut.
			if _, err := stun.WriteTo([]byte("old"), net.UDPAddrFromAddrPort(before)); err != nil {
				t.Fatal(err)
			}
			if in := letIn(t, one, after, stun, nil, 0); len(in) > 0 {
				t.Errorf("%q came through the old mapping", in)
			}
		})
	}
}

// The whole preset: what each kind of access lets out, and that nobody comes in unasked but to a public address.
func TestAccesses(t *testing.T) {
	lab := netlab.New(t)
	world := netlab.NewInternet(lab)
	public := world.Home("public", netlab.Public)
	server := socket(t, public.Host, ":6783")
	listener := map[uint16]net.Listener{}
	for _, port := range []uint16{443, 6783, 8080} {
		l, err := public.Listen("tcp4", netip.AddrPortFrom(public.Outside, port).String())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		listener[port] = l
	}
	for _, access := range netlab.Accesses() {
		h := world.Home("m"+string(rune('0'+access)), access)
		udp := access != netlab.OnlyTCP && access != netlab.OnlyWeb
		c := socket(t, h.Host, netip.AddrPortFrom(h.Addr4(), 6783).String())
		_, _ = c.WriteTo([]byte("out"), &net.UDPAddr{IP: public.Outside.AsSlice(), Port: 6783})
		if udp {
			_ = server.SetReadDeadline(time.Now().Add(patience))
			_, from, err := server.ReadFrom(make([]byte, 64))
			if err != nil {
				t.Errorf("%v: UDP does not get out: %v", access, err)
			} else if got := from.(*net.UDPAddr).AddrPort().Addr(); got != h.Outside {
				t.Errorf("%v: seen at %v, want %v", access, got, h.Outside)
			}
		}
		for port := range listener {
			want := udp || access == netlab.OnlyTCP && port == 6783 || access == netlab.OnlyWeb && port == 443
			if got := dial(h.Host, netip.AddrPortFrom(public.Outside, port), want) == nil; got != want {
				t.Errorf("%v: TCP %d gets out: %v", access, port, got)
			}
		}
		// From outside: only a public machine has anything there to answer with a refusal.
		err := dial(public.Host, netip.AddrPortFrom(h.Outside, 6783), access == netlab.Public)
		if got := errors.Is(err, unix.ECONNREFUSED); got != (access == netlab.Public) {
			t.Errorf("%v: TCP from outside reaches it: %v", access, err)
		}
	}
	// What was sent by those whose UDP is blocked never arrived.
	_ = server.SetReadDeadline(time.Now())
	if n, from, err := server.ReadFrom(make([]byte, 64)); err == nil {
		t.Errorf("%d bytes from %v", n, from)
	}
}

// quiet is how long a connection is tried that a firewall should swallow; one that should come about has all patience.
const quiet = 300 * time.Millisecond

func dial(from *netlab.Host, to netip.AddrPort, answered bool) error {
	limit := quiet
	if answered {
		limit = patience
	}
	var conn net.Conn
	err := from.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp4", to.String(), limit)
		return err
	})
	if err == nil {
		_ = conn.Close()
	}
	return err
}
