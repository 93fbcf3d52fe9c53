package router_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/mesh/peer"
	"weft/router"
	"weft/router/host"
	"weft/router/host/hosttest"
	"weft/router/vxlan"
)

func TestPodsReachPodsHostsAndTheWorld(t *testing.T) {
	l := newLab(t)
	n1, n2 := l.n[1], l.n[2]
	a, b, c := n1.pod("a", 10), n2.pod("b", 10), n1.pod("c", 11)
	for _, p := range []*pod{a, b, c} {
		echo(t, p.NS, netip.AddrPortFrom(netip.IPv6Unspecified(), 7))
	}
	echo(t, l.outside, netip.AddrPortFrom(netip.IPv6Unspecified(), 7))

	reach(t, "pod to pod, other machine", a.NS, b.v4, a.v4.String())
	reach(t, "pod to pod, other machine, IPv6", a.NS, b.v6, a.v6.String())
	reach(t, "and back", b.NS, a.v4, b.v4.String())
	reach(t, "pod to pod, same machine", a.NS, c.v4, a.v4.String())
	reach(t, "pod to pod, same machine, IPv6", a.NS, c.v6, a.v6.String())
	reach(t, "host to own pod", n1.ns, a.v4, n1.in.Hosts[0].String())
	reach(t, "host to own pod, IPv6", n1.ns, a.v6, n1.in.Hosts[1].String())
	reach(t, "host to remote pod", n1.ns, b.v4, n1.in.Hosts[0].String())
	reach(t, "host to remote pod, IPv6", n1.ns, b.v6, n1.in.Hosts[1].String())
	reach(t, "pod to the world", a.NS, addr("10.99.%d.254", 1), "10.99.1.1")
	reach(t, "pod to the world, IPv6", a.NS, addr("2001:db8:%d::fe", 1), "2001:db8:1::1")
	reach(t, "host to the world", n1.ns, addr("10.99.%d.254", 1), "10.99.1.1")

	// A second apply changes nothing.
	for _, m := range []*machine{n1, n2} {
		changes, passes := m.host.changes.Load(), m.host.passes.Load()
		m.r.Update(m.in)
		m.await("a full pass", func() bool { return m.host.passes.Load() >= passes+2 }) // it reads twice
		if now := m.host.changes.Load(); now != changes {
			t.Errorf("applying the same again made %d changes", now-changes)
		}
	}
}

// dump is all that the machine holds, without indexes and counters.
func dump(t testing.TB, m *machine) string {
	t.Helper()
	s, err := m.host.Snapshot(context.Background(), []string{
		"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding",
		"net/ipv6/conf/eth0/accept_ra",
	})
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for _, l := range s.Links {
		add("link %s %s mtu %d up %t", l.Name, l.Kind, l.MTU, l.Up)
		n, err := m.host.Neighbours(context.Background(), l.Name)
		if err != nil {
			continue // it went meanwhile
		}
		for _, e := range n {
			add("neighbour %+v", e)
		}
	}
	for _, a := range s.Addresses {
		add("address %+v", a)
	}
	for _, r := range s.Rules {
		add("rule %s", r)
	}
	for _, g := range s.Gates {
		add("gate %s", g)
	}
	for k, v := range s.Sysctls {
		add("sysctl %s %s", k, v)
	}
	for _, r := range s.Routes {
		add("route %s ours %t", r, r.Ours)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestPodsCannotForgeSourcesNorReachWeft(t *testing.T) {
	l := newLab(t)
	n1, n2 := l.n[1], l.n[2]
	a, b := n1.pod("a", 10), n2.pod("b", 10)
	echo(t, b.NS, netip.AddrPortFrom(netip.IPv6Unspecified(), 7))
	reach(t, "honest", a.NS, b.v4, a.v4.String())

	for _, port := range []uint16{6782, 6783, 6784, 6785} {
		refuse(t, "own node's port", n1, "weft-port", a.NS, n1.in.Underlay[0], port)
		refuse(t, "own host address", n1, "weft-port", a.NS, n1.in.Hosts[0], port)
		refuse(t, "other node's port", n1, "weft-port", a.NS, n2.in.Underlay[0], port)
		refuse(t, "other host address", n2, "weft-port", a.NS, n2.in.Hosts[0], port)
		refuse(t, "other host address, IPv6", n2, "weft-port", a.NS, n2.in.Hosts[1], port)
	}
	refuse(t, "remote host address", n2, "host-access", a.NS, n2.in.Hosts[0], 22)
	if err := ping(a.NS, n2.in.Hosts[0]); err != nil {
		t.Errorf("ping a remote host address: %v", err)
	}

	// A second address that is not the pod's: the reverse path filter would stop IPv4 too, so it is made loose here.
	n1.ns.Sysctl("net/ipv4/conf/"+a.hostIf+"/rp_filter", "0")
	a.Up("eth0", "10.32.4.99/32", "fd77::10.32.4.99/128")
	forge := func(what string, from, to netip.Addr) {
		t.Helper()
		before := drops(t, n1.host)["pod-source"]
		a.Do(func() error {
			c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 7)))
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("?"))
			return err
		})
		await(t, what+" counted", func() bool { return drops(t, n1.host)["pod-source"] > before })
	}
	forge("forged source", addr("10.32.4.%d", 99), b.v4)
	forge("forged source, IPv6", addr("fd77::10.32.4.%d", 99), b.v6)
}

// ping sends one echo request by an unprivileged ICMP socket's privileged cousin and waits for the answer.
func ping(ns *hosttest.NS, to netip.Addr) error {
	var c net.Conn
	if err := host.Do(ns.Path, func() (err error) {
		c, err = net.Dial("ip4:icmp", to.String())
		return err
	}); err != nil {
		return err
	}
	defer c.Close()
	request := []byte{8, 0, 0xf7, 0xfd, 0, 1, 0, 1} // checksum included
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if _, err := c.Write(request); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		b := make([]byte, 512)
		if n, err := c.Read(b); err == nil && n >= 28 && b[20] == 0 {
			return nil
		}
	}
	return os.ErrDeadlineExceeded
}

func TestNothingLeavesInClearWithoutTheDevice(t *testing.T) {
	l := newLab(t)
	n1, n2 := l.n[1], l.n[2]
	a, b := n1.pod("a", 10), n2.pod("b", 10)
	echo(t, b.NS, netip.AddrPortFrom(netip.IPv6Unspecified(), 7))
	leaks1, leaks2 := capture(t, l.outside, "to-n1"), capture(t, l.outside, "to-n2")
	reach(t, "before", a.NS, b.v4, a.v4.String())

	// Without its router nothing repairs the machine; the routes and the guard must do alone.
	n1.stop()
	n1.ns.Do(func() error {
		dev, err := netlink.LinkByName(vxlan.Device)
		if err != nil {
			return err
		}
		return netlink.LinkDel(dev)
	})
	for _, to := range []netip.Addr{b.v4, b.v6} {
		if _, err := ask(a.NS, netip.AddrPortFrom(to, 7), 200*time.Millisecond); err == nil {
			t.Errorf("%s answers without a device", to)
		}
		if _, err := ask(n1.ns, netip.AddrPortFrom(to, 7), 200*time.Millisecond); err == nil {
			t.Errorf("%s answers the host without a device", to)
		}
	}
	// Now without the unreachable routes too: the guard alone.
	n1.ns.Do(func() error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netlink.RouteList(nil, family)
			if err != nil {
				return err
			}
			for _, r := range routes {
				if r.Protocol == host.Protocol && r.Type == unix.RTN_UNREACHABLE {
					if err := netlink.RouteDel(&r); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
	refuse(t, "by the default route", n1, "leak", a.NS, b.v4, 7)
	refuse(t, "by the default route, IPv6", n1, "leak", a.NS, b.v6, 7)
	before := drops(t, n1.host)["leak"]
	_, _ = ask(n1.ns, netip.AddrPortFrom(b.v4, 7), 150*time.Millisecond)
	await(t, "the host's own packet to a pod is counted as leak", func() bool { return drops(t, n1.host)["leak"] > before })
	for _, frame := range append(leaks1.all(), leaks2.all()...) {
		t.Errorf("in clear on the underlay: %x", frame)
	}
}

func TestCaptureFindsAPlantedLeak(t *testing.T) {
	l := newLab(t)
	leaks := capture(t, l.outside, "to-n1")
	n1 := l.n[1]
	n1.stop()
	if err := router.Remove(t.Context(), n1.host, n1.undo); err != nil {
		t.Fatal(err)
	}
	_, _ = ask(n1.ns, netip.AddrPortFrom(addr("10.32.8.%d", 10), 7), 150*time.Millisecond)
	await(t, "the leak is captured", func() bool { return len(leaks.soFar()) > 0 })
}

func TestOutsideCannotInject(t *testing.T) {
	l := newLab(t)
	n1, n2 := l.n[1], l.n[2]
	a := n1.pod("a", 10)
	echo(t, a.NS, netip.AddrPortFrom(netip.IPv6Unspecified(), 7))
	l.outside.Route("10.32.4.0/22", "10.99.1.1")
	l.outside.Route("fd77::/96", "2001:db8:1::1")
	refuse(t, "from the LAN to a pod", n1, "outside-destination", l.outside, a.v4, 7)
	refuse(t, "from the LAN to a pod, IPv6", n1, "outside-destination", l.outside, a.v6, 7)
	l.outside.Up("lo", "10.32.8.77/32")
	before := drops(t, n1.host)["outside-source"]
	l.outside.Do(func() error {
		c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(10, 32, 8, 77)}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a.v4, 7)))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("?"))
		return err
	})
	await(t, "a pool's source from outside is counted", func() bool { return drops(t, n1.host)["outside-source"] > before })
	// VXLAN's port is open to the peer only.
	before = drops(t, n1.host)["vxlan-stranger"]
	_, _ = ask(l.outside, netip.AddrPortFrom(n1.in.Underlay[0], vxlan.Port), 150*time.Millisecond)
	await(t, "a stranger's VXLAN datagram is counted", func() bool { return drops(t, n1.host)["vxlan-stranger"] > before })
	_ = n2
}

func TestDamageIsRepaired(t *testing.T) {
	l := newLab(t)
	n1, n2 := l.n[1], l.n[2]
	a, b := n1.pod("a", 10), n2.pod("b", 10)
	echo(t, b.NS, netip.AddrPortFrom(netip.IPv6Unspecified(), 7))
	reach(t, "before", a.NS, b.v4, a.v4.String())
	want := dump(t, n1)
	damage := map[string]func() error{
		"device deleted": func() error {
			dev, err := netlink.LinkByName(vxlan.Device)
			if err != nil {
				return err
			}
			return netlink.LinkDel(dev)
		},
		"device down": func() error {
			dev, err := netlink.LinkByName(vxlan.Device)
			if err != nil {
				return err
			}
			return netlink.LinkSetDown(dev)
		},
		"route deleted": func() error {
			return netlink.RouteDel(&netlink.Route{Dst: &net.IPNet{IP: net.IP{10, 32, 8, 0}, Mask: net.CIDRMask(22, 32)}})
		},
		"unreachable route deleted": func() error {
			return netlink.RouteDel(&netlink.Route{
				Dst:  &net.IPNet{IP: net.IP{10, 32, 0, 0}, Mask: net.CIDRMask(12, 32)},
				Type: unix.RTN_UNREACHABLE,
			})
		},
		"host address deleted": func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			addr, err := netlink.ParseAddr("10.32.4.1/32")
			if err != nil {
				return err
			}
			return netlink.AddrDel(lo, addr)
		},
	}
	for name, do := range damage {
		t.Run(name, func(t *testing.T) {
			n1.ns.Do(do)
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("%s\nwant:\n%s", dump(t, n1), want)
				}
			})
			await(t, "the machine is as before", func() bool { return dump(t, n1) == want })
			reach(t, "after", a.NS, b.v4, a.v4.String())
		})
	}
	t.Run("table deleted", func(t *testing.T) {
		if err := n1.ns.Host().RemoveFilter(t.Context()); err != nil {
			t.Fatal(err)
		}
		await(t, "the guard is back", func() bool { _, ok := drops(t, n1.host)["leak"]; return ok })
		await(t, "the check of vxlan is back", func() bool { _, ok := drops(t, n1.host)["vxlan-source"]; return ok })
		refuse(t, "weft's port", n1, "weft-port", a.NS, n1.in.Underlay[0], 6783)
	})
}

// With nftables flushed and nobody to repair it, the gate still keeps what a peer sends from the LAN, and the peer's
// lies are the business of the rules of vxlan while they stand.
func TestAPeerReachesOnlyPods(t *testing.T) {
	l := newLab(t)
	n1, n2 := l.n[1], l.n[2]
	a := n1.pod("a", 10)
	echo(t, a.NS, netip.AddrPortFrom(netip.IPv6Unspecified(), 7))
	echo(t, l.outside, netip.AddrPortFrom(netip.IPv6Unspecified(), 7))
	n1.ns.Up("lo", "192.168.7.1/32")
	echo(t, n1.ns, netip.AddrPortFrom(netip.IPv6Unspecified(), 9))
	// n2 is taken over by somebody who has no guard and routes what he likes through the tunnel.
	n2.stop()
	if err := n2.host.RemoveFilter(t.Context()); err != nil {
		t.Fatal(err)
	}
	mac, err := net.ParseMAC(vxlan.MAC(n1.in.Self).String())
	if err != nil {
		t.Fatal(err)
	}
	n2.ns.Do(func() error {
		dev, err := netlink.LinkByName(vxlan.Device)
		if err != nil {
			return err
		}
		for _, to := range []string{"10.99.1.254", "192.168.7.1", "10.36.0.1"} {
			via := &netlink.Neigh{LinkIndex: dev.Attrs().Index, IP: net.ParseIP("10.32.4.0"), HardwareAddr: mac, State: unix.NUD_PERMANENT}
			if err := netlink.NeighSet(via); err != nil {
				return err
			}
			if err := netlink.RouteReplace(&netlink.Route{
				LinkIndex: dev.Attrs().Index, Gw: net.ParseIP("10.32.4.0"),
				Flags: int(netlink.FLAG_ONLINK), Src: net.ParseIP("10.32.8.1"),
				Dst: &net.IPNet{IP: net.ParseIP(to), Mask: net.CIDRMask(32, 32)},
			}); err != nil {
				return err
			}
		}
		return nil
	})
	reach(t, "honest still", n2.ns, a.v4, "10.32.8.1")
	refuse(t, "an address of ours that nobody has", n1, "peer-destination", n2.ns, addr("10.32.4.%d", 99), 7)
	shut := "peer-destination"
	if host.ProbeGate(t.Context()) == nil {
		shut = host.DropGate // which comes first
	}
	refuse(t, "the LAN behind n1", n1, shut, n2.ns, addr("10.99.1.%d", 254), 7)
	refuse(t, "n1's own address", n1, shut, n2.ns, addr("192.168.7.%d", 1), 9)
	refuse(t, "a third node's block", n1, shut, n2.ns, addr("10.36.0.%d", 1), 7)

	// Sources that are not his: one of ours, one of a third node, one of the world.
	for _, from := range []string{"10.32.4.77", "10.36.0.1", "192.0.2.1"} {
		before := drops(t, n1.host)["vxlan-source"] + drops(t, n1.host)[host.DropGate]
		n2.ns.Do(func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			address, err := netlink.ParseAddr(from + "/32")
			if err != nil {
				return err
			}
			if err := netlink.AddrReplace(lo, address); err != nil {
				return err
			}
			c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr("10.32.4.%d", 11), 7)))
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("?"))
			return err
		})
		await(t, "the source "+from+" is counted", func() bool {
			now := drops(t, n1.host)
			return now["vxlan-source"]+now[host.DropGate] > before
		})
	}

	// Now n1 has no rules either, and nobody to repair them: the gate keeps the LAN and third nodes out of reach.
	n1.stop()
	if err := n1.host.RemoveFilter(t.Context()); err != nil {
		t.Fatal(err)
	}
	reach(t, "pods without rules", n2.ns, a.v4, "10.32.8.1")
	if _, err := ask(n2.ns, netip.AddrPortFrom(addr("10.99.1.%d", 254), 7), 200*time.Millisecond); err == nil {
		t.Error("without nftables a peer reaches the LAN")
	}
}

func TestDetachLeavesNothing(t *testing.T) {
	l := newLab(t)
	n1 := l.n[1]
	before := dump(t, n1)
	p := n1.pod("a", 10)
	if dump(t, n1) == before {
		t.Fatal("attach changed nothing")
	}
	again := dump(t, n1)
	if _, err := n1.r.Attach(t.Context(), router.AttachRequest{NetNS: p.Path, Pod: router.Pod{Name: "a", V4: p.v4, V6: p.v6}}); err != nil {
		t.Fatalf("attach again: %v", err)
	}
	if now := dump(t, n1); now != again {
		t.Errorf("attaching again changed something:\n%s\nbefore:\n%s", now, again)
	}
	for range 2 {
		if err := n1.r.Detach(t.Context(), "a", ""); err != nil {
			t.Fatal(err)
		}
		// At once: nobody reaches it, and it reaches nobody. The link has a little time.
		for line := range strings.Lines(dump(t, n1)) {
			if !strings.Contains(line, "neighbour") && (strings.Contains(line, p.v4.String()) || strings.Contains(line, p.v6.String())) {
				t.Errorf("still routed or admitted: %s", line)
			}
		}
		if !n1.r.Lingers(p.v4) && dump(t, n1) != before {
			t.Error("says that the link is gone")
		}
	}
	await(t, "the link is deleted", func() bool { return dump(t, n1) == before })
	await(t, "the address is free", func() bool { return !n1.r.Lingers(p.v4) })
	// A namespace that ended takes the pair along; detaching it is no error.
	p = n1.pod("b", 11)
	p.Close()
	await(t, "the veth goes with the namespace", func() bool { return dump(t, n1) == before })
	if err := n1.r.Detach(t.Context(), "b", ""); err != nil {
		t.Fatal(err)
	}
}

func TestAttachRefusesInWords(t *testing.T) {
	l := newLab(t)
	n1 := l.n[1]
	before := dump(t, n1)
	ns := hosttest.NewNS(t)
	other := hosttest.NewNS(t)
	hosttest.Wire(t, ns, "eth0", nil, other, "x", nil)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path string
		v4   netip.Addr
		want string
	}{
		"no such namespace":   {"/run/netns/none", addr("10.32.4.%d", 10), "there is no such namespace"},
		"not a namespace":     {file, addr("10.32.4.%d", 10), "not a network namespace"},
		"the host's own":      {n1.ns.Path, addr("10.32.4.%d", 10), "the host's own namespace"},
		"name taken":          {ns.Path, addr("10.32.4.%d", 10), "--ifname"},
		"address of no pool":  {other.Path, addr("192.0.2.%d", 10), "none of the cluster's pools"},
		"no address whatever": {other.Path, netip.Addr{}, "no address"},
	} {
		_, err := n1.r.Attach(t.Context(), router.AttachRequest{NetNS: c.path, Pod: router.Pod{Name: "a", V4: c.v4}})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want ... %s ...", name, err, c.want)
		}
	}
	if now := dump(t, n1); now != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", now, before)
	}
}

func TestRemoveLeavesTheMachineAsItWas(t *testing.T) {
	var before string
	l := newLab(t, func(l *lab) { before = dump(t, l.n[1]) })
	n1 := l.n[1]
	n1.pod("a", 10)
	n1.stop()
	if err := n1.r.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, err := n1.host.Snapshot(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	refusing := 0
	for _, r := range s.Routes {
		if r.Kind == host.Unreachable && r.Ours {
			refusing++
		}
	}
	if _, guarded := drops(t, n1.host)["leak"]; refusing != 2 || !guarded {
		t.Errorf("after down: %d refusing routes, guard %t", refusing, guarded)
	}
	for range 2 {
		if err := router.Remove(t.Context(), n1.host, n1.undo); err != nil {
			t.Fatal(err)
		}
	}
	if now := dump(t, n1); now != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", now, before)
	}
	if d := drops(t, n1.host); len(d) != 0 {
		t.Errorf("rules left: %v", d)
	}
}

func TestPolicyOpensWhatItNames(t *testing.T) {
	l := newLab(t, func(l *lab) {
		l.n[1].in.NoMasquerade = []netip.Prefix{netip.MustParsePrefix("10.99.1.0/24"), netip.MustParsePrefix("0.0.0.0/1")}
		l.n[2].in.HostAccessAll = true
	})
	n1, n2 := l.n[1], l.n[2]
	a := n1.pod("a", 10)
	l.outside.Route("10.32.4.0/22", "10.99.1.1")
	echo(t, l.outside, netip.AddrPortFrom(netip.IPv6Unspecified(), 7))
	echo(t, n2.ns, netip.AddrPortFrom(n2.in.Hosts[0], 7))
	echo(t, n2.ns, netip.AddrPortFrom(n2.in.Hosts[0], 6783))
	reach(t, "under its own address", a.NS, addr("10.99.1.%d", 254), a.v4.String())
	reach(t, "a remote host's port", a.NS, n2.in.Hosts[0], a.v4.String())
	refuse(t, "but not weft's", n2, "weft-port", a.NS, n2.in.Hosts[0], 6783)
	// Even a network that holds the pools does not let pool traffic out in clear.
	n1.stop()
	n1.ns.Do(func() error {
		dev, err := netlink.LinkByName(vxlan.Device)
		if err != nil {
			return err
		}
		if err := netlink.LinkDel(dev); err != nil {
			return err
		}
		return netlink.RouteDel(&netlink.Route{Dst: &net.IPNet{IP: net.IP{10, 32, 0, 0}, Mask: net.CIDRMask(12, 32)}, Type: unix.RTN_UNREACHABLE})
	})
	refuse(t, "pool traffic", n1, "leak", a.NS, n2.in.Hosts[0], 7)
}

// The daemon may end and come back without a packet lost; and what it left in clear goes when trust does.
func TestRestartTakesOver(t *testing.T) {
	l := newLab(t)
	n1, n2 := l.n[1], l.n[2]
	a, b := n1.pod("a", 10), n2.pod("b", 10)
	echo(t, b.NS, netip.AddrPortFrom(netip.IPv6Unspecified(), 7))
	reach(t, "before", a.NS, b.v4, a.v4.String())
	n1.stop()
	reach(t, "without a daemon", a.NS, b.v4, a.v4.String())
	n1.in.Pods = []router.Pod{{Name: "a", V4: a.v4, V6: a.v6}} // from the claims
	before, changes := dump(t, n1), n1.host.changes.Load()
	n1.start()
	if now := n1.host.changes.Load(); now != changes {
		t.Errorf("the new daemon made %d changes", now-changes)
	}
	if now := dump(t, n1); now != before {
		t.Errorf("taken over:\n%s\nbefore:\n%s", now, before)
	}
	reach(t, "after", a.NS, b.v4, a.v4.String())

	n1.stop()
	n1.in.Trusted = nil
	n1.start()
	await(t, "the device is gone", func() bool { return !strings.Contains(dump(t, n1), vxlan.Device) })
	if _, left := drops(t, n1.host)["vxlan-source"]; left {
		t.Error("rules of vxlan are left")
	}
	if _, err := ask(a.NS, netip.AddrPortFrom(b.v4, 7), 150*time.Millisecond); err == nil {
		t.Error("still in clear")
	}
}

func TestHostWithoutIPv6(t *testing.T) {
	l := newLab(t, func(l *lab) {
		for _, m := range l.n[1:] {
			m.ns.Sysctl("net/ipv6/conf/all/disable_ipv6", "1")
			m.ns.Sysctl("net/ipv6/conf/default/disable_ipv6", "1")
		}
	})
	n1, n2 := l.n[1], l.n[2]
	a, b := n1.pod("a", 10), n2.pod("b", 10)
	echo(t, b.NS, netip.AddrPortFrom(b.v4, 7))
	reach(t, "IPv4", a.NS, b.v4, a.v4.String())
	if notes := n1.r.Status().Notes; len(notes) != 1 || !strings.Contains(notes[0], "IPv4 only") {
		t.Errorf("notes: %q", notes)
	}
}

// A path that carries less than pods send: TCP never tries, and the rest is told by the kernel.
func TestSmallerPathsAreKnownToTCP(t *testing.T) {
	l := newLab(t, func(l *lab) {
		l.n[1].in.Peers[0].Info.MTU, l.n[2].in.UnderlayMTU = 1360, 1360
	})
	n1, n2 := l.n[1], l.n[2]
	a, b := n1.pod("a", 10), n2.pod("b", 10)
	for _, to := range []struct {
		addr netip.Addr
		most int // 1280 without the IP and TCP headers
	}{{b.v4, 1240}, {b.v6, 1220}} {
		var listener *net.TCPListener
		b.Do(func() (err error) {
			listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(to.addr, 80)))
			return err
		})
		var c net.Conn
		a.Do(func() (err error) {
			c, err = net.DialTimeout("tcp", netip.AddrPortFrom(to.addr, 80).String(), patience)
			return err
		})
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var mss int
		if err := raw.Control(func(fd uintptr) { mss, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) }); err != nil {
			t.Fatal(err)
		}
		if mss > to.most || mss < to.most-20 {
			t.Errorf("to %s: segments of %d bytes, want at most %d", to.addr, mss, to.most)
		}
		_ = c.Close()
		_ = listener.Close()
	}
}

func TestManyPodsAtOnce(t *testing.T) {
	l := newLab(t)
	n1 := l.n[1]
	before := dump(t, n1)
	var wg sync.WaitGroup
	var spaces []*hosttest.NS
	for range 30 {
		spaces = append(spaces, hosttest.NewNS(t))
	}
	took := make([]time.Duration, len(spaces))
	for i, ns := range spaces {
		wg.Go(func() {
			start := time.Now()
			_, err := n1.r.Attach(t.Context(), router.AttachRequest{NetNS: ns.Path, Pod: router.Pod{
				Name: fmt.Sprint("pod", i),
				V4:   addr("10.32.4.%d", 20+i), V6: addr("fd77::10.32.4.%d", 20+i),
			}})
			if took[i] = time.Since(start); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	echo(t, spaces[29], netip.AddrPortFrom(netip.IPv6Unspecified(), 7))
	reach(t, "first to last", spaces[0], addr("10.32.4.%d", 49), "10.32.4.20")
	for i := range spaces {
		wg.Go(func() {
			if err := n1.r.Detach(t.Context(), fmt.Sprint("pod", i), "eth0"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n1.await("everything is as before", func() bool { return dump(t, n1) == before })
	slices.Sort(took)
	t.Logf("30 at once: the first after %s, the last after %s", took[0], took[29])
}

// The device of a transport in userspace is made by somebody else, and may come late.
func TestATUNThatComesLateIsMadeReady(t *testing.T) {
	ns := hosttest.NewNS(t)
	h := ns.Host()
	idle := &tunnels{h: hosttest.New(nil)}
	r, err := router.New(router.Config{Host: h, Drivers: []router.Driver{{
		Name: "sleeve", Device: "weft-sl", Sealed: true, Checks: true,
		Open: func(context.Context) (router.Transport, error) { return idle, nil },
	}}})
	if err != nil {
		t.Fatal(err)
	}
	r.Update(router.Input{
		Self: id(1), Pools: pools, Blocks: blocks(1), Hosts: []netip.Addr{addr("10.32.4.%d", 1), addr("fd77::10.32.4.%d", 1)},
		Peers: []router.Peer{{Blocks: blocks(2), Info: peer.Info{ID: id(2), Known: true, Transports: []string{"sleeve"}}}},
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	await(t, "ready", func() bool { return r.Status().Ready })
	files, _, err := h.OpenTUN("weft-sl", 2, true)
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	const loose = "net/ipv4/conf/weft-sl/rp_filter"
	await(t, "routes lead to the device", func() bool {
		s, err := h.Snapshot(t.Context(), []string{loose})
		if err != nil {
			t.Fatal(err)
		}
		l, ok := s.Link("weft-sl")
		routes := 0
		for _, r := range s.Routes {
			if r.Link == "weft-sl" && r.Ours && r.MTU == 1420 && r.Src.IsValid() {
				routes++
			}
		}
		for _, a := range s.Addresses {
			if a.Link == "weft-sl" && a.Prefix.Addr() != addr("10.32.4.%d", 1) {
				t.Fatalf("the device invented %s", a.Prefix)
			}
		}
		return ok && l.Up && l.MTU == 1420 && routes == 2 && s.Sysctls[loose] == "2"
	})
}
