package host_test

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"weft/router/host"
	"weft/router/host/hosttest"
)

// gateLab is a machine with a peer behind weft-vx and a network behind lan.
type gateLab struct {
	*testing.T
	machine, peer, lan *hosttest.NS
	h                  *host.Host
}

func newGateLab(t *testing.T) *gateLab {
	l := &gateLab{T: t, machine: hosttest.NewNS(t), peer: hosttest.NewNS(t), lan: hosttest.NewNS(t)}
	for _, ns := range []*hosttest.NS{l.machine, l.peer, l.lan} {
		ns.Up("lo") // by which IPv6 leads to a machine itself
	}
	hosttest.Wire(t, l.machine, "weft-vx", []string{"198.18.1.1/24", "fd18:1::1/64"}, l.peer, "eth0", []string{"198.18.1.2/24", "fd18:1::2/64"})
	hosttest.Wire(t, l.machine, "lan", []string{"10.99.1.1/24", "fd99:1::1/64", "fe80::1/64"}, l.lan, "eth0", []string{"10.99.1.254/24", "10.32.4.9/24", "fd99:1::fe/64"})
	l.machine.Sysctl("net/ipv4/ip_forward", "1")
	l.machine.Sysctl("net/ipv6/conf/all/forwarding", "1")
	l.peer.Route("10.0.0.0/8", "198.18.1.1")
	l.peer.Route("fd99:1::/64", "fd18:1::1")
	l.lan.Route("198.18.1.0/24", "10.99.1.1")
	l.lan.Route("fd18:1::/64", "fd99:1::1")
	l.h = l.machine.Host()
	l.machine.Do(func() error {
		lan, err := netlink.LinkByName("lan")
		if err != nil {
			return err
		}
		_, to, _ := net.ParseCIDR("10.32.4.0/24")
		return netlink.RouteReplace(&netlink.Route{LinkIndex: lan.Attrs().Index, Dst: to})
	})
	return l
}

// beacon is where the peer's datagrams always come.
const beacon = "10.32.4.9"

// passes reports whether a datagram of the peer's comes to an address. One that should is sent until it does. One that should
// not is followed by one to the beacon, which tells that it would have come by then.
func (l *gateLab) passes(to string, should bool) bool {
	l.Helper()
	var heard net.PacketConn
	l.lan.Do(func() (err error) {
		heard, err = net.ListenPacket("udp", ":7")
		return err
	})
	defer heard.Close()
	send := func(to, text string) {
		l.peer.Do(func() error {
			c, err := net.Dial("udp", net.JoinHostPort(to, "7"))
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte(text))
			return err
		})
	}
	b, passed := make([]byte, 64), false
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		send(to, "asked")
		if !should {
			send(beacon, "beacon")
		}
		for _ = heard.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); ; {
			n, _, err := heard.ReadFrom(b)
			if err != nil {
				break
			}
			passed = passed || string(b[:n]) == "asked"
			if passed || string(b[:n]) == "beacon" {
				return passed
			}
		}
	}
	if !should {
		l.Fatalf("nothing comes to %s", beacon)
	}
	return false
}

func (l *gateLab) set(op host.Op, g host.Gate) {
	l.Helper()
	if err := l.h.Apply(l.Context(), []host.Change{{Op: op, Gate: &g}}); err != nil {
		l.Fatal(err)
	}
}

func (l *gateLab) read() *host.Snapshot {
	l.Helper()
	s, err := l.h.Snapshot(l.Context(), nil)
	if err != nil {
		l.Fatal(err)
	}
	return s
}

func passage(from, to string) host.Passage {
	return host.Passage{From: netip.MustParsePrefix(from), To: netip.MustParsePrefix(to)}
}

func TestAGateStandsByItself(t *testing.T) {
	for name, program := range map[string]bool{"program": true, "rules": false} {
		t.Run(name, func(t *testing.T) {
			l := newGateLab(t)
			if err := host.ProbeGate(t.Context()); program && errors.Is(err, host.ErrUnsupported) {
				t.Skipf("skipped: %v", err)
			}
			if !program {
				l.h.WithoutPrograms()
			}
			four, six := passage("198.18.1.0/24", "10.32.4.0/24"), passage("fd18:1::/64", "fd99:1::/64")
			const outside, inside6 = "10.99.1.254", "fd99:1::fe"
			for _, to := range []string{beacon, outside, inside6} {
				if !l.passes(to, true) {
					t.Fatalf("nothing comes to %s where there is no gate", to)
				}
			}
			g := host.Gate{Link: "weft-vx", Open: []host.Passage{four, six}}
			for range 2 { // the second changes nothing
				l.set(host.Set, g)
				s := l.read()
				if s.Gates["weft-vx"] != g.String() || len(s.Gates) != 1 {
					t.Fatalf("stands as %v, want %s", s.Gates, g)
				}
				if program != (len(s.Rules) == 0) {
					t.Errorf("rules: %v", s.Rules)
				}
				if l.passes(outside, false) {
					t.Error("it brings what is for others")
				}
				if d, err := l.h.Drops(t.Context()); err != nil || program != (d[host.DropGate] > 0) {
					t.Errorf("counted: %v: %v", d, err)
				}
				if !l.passes(inside6, true) {
					t.Error("it does not bring IPv6 for us")
				}
			}
			g.Open = []host.Passage{four} // replaced in one step
			l.set(host.Set, g)
			if l.passes(inside6, false) {
				t.Error("a passage that was closed is open")
			}
			again := l.machine.Host() // another run of weft, which does not know what this one did
			if !program {
				again.WithoutPrograms()
			} else if s, err := again.Snapshot(t.Context(), nil); err != nil || s.Gates["weft-vx"] == "" || s.Gates["weft-vx"] == g.String() {
				t.Errorf("a gate of a former run reads as %v: %v", s.Gates, err)
			}
			if err := again.Apply(t.Context(), []host.Change{{Gate: &g}}); err != nil {
				t.Fatal(err)
			}
			if s, err := again.Snapshot(t.Context(), nil); err != nil || s.Gates["weft-vx"] != g.String() {
				t.Errorf("taken over it reads as %v: %v", s.Gates, err)
			}
			l.set(host.Delete, host.Gate{Link: "weft-vx"})
			if s := l.read(); len(s.Gates)+len(s.Rules) > 0 {
				t.Errorf("left behind: %v %v", s.Gates, s.Rules)
			}
			if !l.passes(outside, true) {
				t.Error("it is shut although there is no gate")
			}
		})
	}
}

// A device that is yet to come has its gate before it is up, and policy rules of a former version go once it stands.
func TestAGateWaitsForItsDevice(t *testing.T) {
	ns := hosttest.NewNS(t)
	if err := host.ProbeGate(t.Context()); errors.Is(err, host.ErrUnsupported) {
		t.Skipf("skipped: %v", err)
	}
	h := ns.Host()
	old := []host.Rule{
		{Priority: 6783, IIf: "weft-vx", From: netip.MustParsePrefix("10.32.0.0/12"), To: netip.MustParsePrefix("10.32.4.0/22"), Ours: true},
		{Priority: 6784, IIf: "weft-vx", Drop: true, Ours: true},
		{Priority: 6784, IIf: "weft-wg", Drop: true, Ours: true},
	}
	for i := range old {
		if err := h.Apply(t.Context(), []host.Change{{Rule: &old[i]}}); err != nil {
			t.Fatal(err)
		}
	}
	g := host.Gate{Link: "weft-vx", Open: []host.Passage{passage("10.32.0.0/12", "10.32.4.0/22")}}
	device := host.Link{Name: "weft-vx", Up: true, MAC: "02:00:00:00:00:01", VXLAN: &host.VXLAN{VNI: 7, Port: 6785}}
	read := func() *host.Snapshot {
		t.Helper()
		s, err := h.Snapshot(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := read(); s.Gates["weft-wg"] == "" {
		t.Errorf("rules are not read as a gate: %v", s.Gates)
	}
	if err := h.Apply(t.Context(), []host.Change{{Gate: &g}}); err != nil {
		t.Fatal(err)
	}
	s := read()
	if s.Gates["weft-vx"] != g.String() {
		t.Errorf("what waits reads as %v", s.Gates)
	}
	if !slices.Equal(s.Rules, old[2:]) {
		t.Errorf("rules: %v", s.Rules)
	}
	events, err := h.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // deleted by hand it comes back with its gate
		if err := h.Apply(t.Context(), []host.Change{{Link: &device}}); err != nil {
			t.Fatal(err)
		}
		if s := read(); s.Gates["weft-vx"] != g.String() {
			t.Errorf("on the device it reads as %v", s.Gates)
		}
		for deadline := time.Now().Add(30 * time.Second); ; { // of two events at once one may be left out
			ns.Do(removeClsact)
			if told(events, "gate") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("nobody tells that a gate was taken away")
			}
			if err := h.Apply(t.Context(), []host.Change{{Gate: &g}}); err != nil {
				t.Fatal(err)
			}
		}
		if s := read(); s.Gates["weft-vx"] != "" {
			t.Errorf("taken away it reads as %v", s.Gates)
		}
		if err := h.Apply(t.Context(), []host.Change{{Op: host.Delete, Link: &device}}); err != nil {
			t.Fatal(err)
		}
	}
}

func removeClsact() error {
	l, err := netlink.LinkByName("weft-vx")
	if err != nil {
		return err
	}
	return netlink.QdiscDel(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)},
		QdiscType:  "clsact",
	})
}

// told reports whether an event of a kind comes within a second.
func told(events <-chan host.Event, what string) bool {
	for wait := time.After(time.Second); ; {
		select {
		case e := <-events:
			if e.What == what {
				return true
			}
		case <-wait:
			return false
		}
	}
}
