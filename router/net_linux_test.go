package router_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
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

// The tests of this file move real packets between network namespaces:
//
//	pods - machine n1 ---10.99.1.0/24--- outside ---10.99.2.0/24--- machine n2 - pods
//
// The transport is VXLAN between the two, because it needs no process.

const patience = 5 * time.Second

var pools = []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12"), netip.MustParsePrefix("fd77::/96")}

type machine struct {
	t    *testing.T
	ns   *hosttest.NS
	host *host.Host
	r    *router.Router
	in   router.Input
	undo string
	stop func()
}

type lab struct {
	t       *testing.T
	outside *hosttest.NS
	n       [3]*machine // 1 and 2
}

// newLab makes the machines and runs a router on each.
func newLab(t *testing.T, change ...func(l *lab)) *lab {
	t.Helper()
	l := &lab{t: t, outside: hosttest.NewNS(t)}
	l.outside.Sysctl("net/ipv4/ip_forward", "1")
	l.outside.Sysctl("net/ipv6/conf/all/forwarding", "1")
	for i := 1; i <= 2; i++ {
		m := &machine{t: t, ns: hosttest.NewNS(t), undo: filepath.Join(t.TempDir(), "undo.json")}
		hosttest.Wire(t, m.ns, "eth0", []string{fmt.Sprintf("10.99.%d.1/24", i), fmt.Sprintf("2001:db8:%d::1/64", i)},
			l.outside, fmt.Sprintf("to-n%d", i), []string{fmt.Sprintf("10.99.%d.254/24", i), fmt.Sprintf("2001:db8:%d::fe/64", i)})
		m.ns.Route("0.0.0.0/0", fmt.Sprintf("10.99.%d.254", i))
		m.ns.Route("::/0", fmt.Sprintf("2001:db8:%d::fe", i))
		m.host = m.ns.Host()
		l.n[i] = m
	}
	for i := 1; i <= 2; i++ {
		m, o := l.n[i], 3-i
		m.in = router.Input{
			Self: id(i), Pools: pools, Blocks: blocks(i),
			Hosts:    []netip.Addr{addr("10.32.%d.1", 4*i), addr("fd77::10.32.%d.1", 4*i)},
			Underlay: []netip.Addr{addr("10.99.%d.1", i)}, UnderlayMTU: 1500,
			Trusted: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")},
			Peers: []router.Peer{{Blocks: blocks(o), Info: peer.Info{ID: id(o), State: peer.Alive, Known: true, MTU: 1500,
				Endpoints: []netip.AddrPort{netip.AddrPortFrom(addr("10.99.%d.1", o), 6783)}, Transports: []string{vxlan.Name},
				Trusted: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")}}}},
		}
	}
	for _, c := range change {
		c(l)
	}
	for i := 1; i <= 2; i++ {
		l.n[i].start()
	}
	return l
}

func id(i int) peer.ID { return peer.ID{byte(i)} }

func addr(format string, n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf(format, n)) }

func blocks(i int) []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(addr("10.32.%d.0", 4*i), 22), netip.PrefixFrom(addr("fd77::10.32.%d.0", 4*i), 118)}
}

type testLog struct {
	mu sync.Mutex
	t  testing.TB
	on bool
}

func (w *testLog) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.on {
		w.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

func (m *machine) start() {
	m.t.Helper()
	w := &testLog{t: m.t, on: true}
	log := slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})).With("machine", m.in.Self.Short())
	r, err := router.New(router.Config{Host: m.host, Undo: m.undo, Log: log,
		Drivers: []router.Driver{vxlan.Driver(m.host, m.in.Self)}})
	if err != nil {
		m.t.Fatal(err)
	}
	m.r = r
	r.Update(m.in)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	m.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			m.t.Errorf("run: %v", err)
		}
		w.mu.Lock()
		w.on = false
		w.mu.Unlock()
	})
	m.t.Cleanup(m.stop)
	m.await("ready, with its peer by vxlan", func() bool {
		s := r.Status()
		return s.Ready && s.Reason == "" && (len(s.Peers) == 0 || s.Peers[0].Link.Up || len(m.in.Trusted) == 0)
	})
}

// await looks again whenever something may have changed.
func (m *machine) await(what string, ok func() bool) {
	m.t.Helper()
	await(m.t, what, ok)
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not within %s: %s", patience, what)
		case <-tick.C:
		}
	}
}

// pod attaches a new namespace with the n-th addresses of the machine's blocks.
func (m *machine) pod(name string, n int) *pod {
	m.t.Helper()
	i := int(m.in.Self[0])
	p := &pod{NS: hosttest.NewNS(m.t), v4: addr(fmt.Sprintf("10.32.%d.%%d", 4*i), n), v6: addr(fmt.Sprintf("fd77::10.32.%d.%%d", 4*i), n)}
	a, err := m.r.Attach(m.t.Context(), router.AttachRequest{NetNS: p.Path, Pod: router.Pod{Name: name, V4: p.v4, V6: p.v6}})
	if err != nil {
		m.t.Fatal(err)
	}
	p.hostIf = a.HostIf
	return p
}

type pod struct {
	*hosttest.NS
	v4, v6 netip.Addr
	hostIf string
}

// echo answers datagrams with the address that they came from.
func echo(t *testing.T, ns *hosttest.NS, at netip.AddrPort) {
	t.Helper()
	var c *net.UDPConn
	ns.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2048)
		for {
			_, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort([]byte(from.Addr().Unmap().String()), from)
		}
	})
	t.Cleanup(func() { _ = c.Close(); wg.Wait() })
}

// ask sends datagrams until one is answered, and tells from which address the other end saw them.
func ask(ns *hosttest.NS, to netip.AddrPort, within time.Duration) (seen string, err error) {
	var c *net.UDPConn
	if err := host.Do(ns.Path, func() (err error) {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	}); err != nil {
		return "", err
	}
	defer c.Close()
	b := make([]byte, 2048)
	for end := time.Now().Add(within); time.Now().Before(end); {
		if _, err := c.Write([]byte("?")); err != nil {
			return "", err
		}
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := c.Read(b)
		if err == nil {
			return string(b[:n]), nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return "", err
		}
	}
	return "", os.ErrDeadlineExceeded
}

func reach(t *testing.T, what string, ns *hosttest.NS, to netip.Addr, port uint16, from string) {
	t.Helper()
	seen, err := ask(ns, netip.AddrPortFrom(to, port), patience)
	if err != nil {
		t.Errorf("%s: %v", what, err)
	} else if seen != from {
		t.Errorf("%s: seen from %s, want %s", what, seen, from)
	}
}

// refuse expects a datagram to be dropped, and counted under reason on m.
func refuse(t *testing.T, what string, m *machine, reason string, ns *hosttest.NS, to netip.Addr, port uint16) {
	t.Helper()
	before := drops(t, m.host)[reason]
	if seen, err := ask(ns, netip.AddrPortFrom(to, port), 150*time.Millisecond); err == nil {
		t.Errorf("%s: answered, seen from %s", what, seen)
	}
	if now := drops(t, m.host)[reason]; now == before {
		t.Errorf("%s: not counted as %s", what, reason)
	}
}

func drops(t testing.TB, h *host.Host) host.Drops {
	t.Helper()
	d, err := h.Drops(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// capture keeps the frames that pass a device until the returned function is called, which gives those that carry an
// address of the pools outside of a VXLAN datagram.
func capture(t *testing.T, ns *hosttest.NS, device string) (leaks func() [][]byte) {
	t.Helper()
	var f *os.File
	ns.Do(func() error {
		i, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "capture")
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
	})
	var mu sync.Mutex
	var found [][]byte
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 65536)
		for {
			n, err := f.Read(b)
			if err != nil {
				return
			}
			if clearText(b[:n]) {
				mu.Lock()
				found = append(found, bytes.Clone(b[:n]))
				mu.Unlock()
			}
		}
	})
	stop := sync.OnceFunc(func() { _ = f.Close(); wg.Wait() })
	t.Cleanup(stop)
	return func() [][]byte { stop(); mu.Lock(); defer mu.Unlock(); return found }
}

func clearText(frame []byte) bool {
	if len(frame) < 14 {
		return false
	}
	inPools := func(b []byte) bool {
		a, _ := netip.AddrFromSlice(b)
		return pools[0].Contains(a) || pools[1].Contains(a)
	}
	switch p := frame[14:]; {
	case frame[12] == 0x08 && frame[13] == 0x00 && len(p) >= 20:
		return inPools(p[12:16]) || inPools(p[16:20])
	case frame[12] == 0x08 && frame[13] == 0x06 && len(p) >= 28: // ARP
		return inPools(p[14:18]) || inPools(p[24:28])
	case frame[12] == 0x86 && frame[13] == 0xdd && len(p) >= 40:
		return inPools(p[8:24]) || inPools(p[24:40])
	}
	return false
}

func TestPodsReachPodsHostsAndTheWorld(t *testing.T) {
	l := newLab(t)
	n1, n2 := l.n[1], l.n[2]
	a, b, c := n1.pod("a", 10), n2.pod("b", 10), n1.pod("c", 11)
	for _, p := range []*pod{a, b, c} {
		echo(t, p.NS, netip.AddrPortFrom(netip.IPv6Unspecified(), 7))
	}
	echo(t, l.outside, netip.AddrPortFrom(netip.IPv6Unspecified(), 7))

	reach(t, "pod to pod, other machine", a.NS, b.v4, 7, a.v4.String())
	reach(t, "pod to pod, other machine, IPv6", a.NS, b.v6, 7, a.v6.String())
	reach(t, "and back", b.NS, a.v4, 7, b.v4.String())
	reach(t, "pod to pod, same machine", a.NS, c.v4, 7, a.v4.String())
	reach(t, "pod to pod, same machine, IPv6", a.NS, c.v6, 7, a.v6.String())
	reach(t, "host to own pod", n1.ns, a.v4, 7, n1.in.Hosts[0].String())
	reach(t, "host to own pod, IPv6", n1.ns, a.v6, 7, n1.in.Hosts[1].String())
	reach(t, "host to remote pod", n1.ns, b.v4, 7, n1.in.Hosts[0].String())
	reach(t, "host to remote pod, IPv6", n1.ns, b.v6, 7, n1.in.Hosts[1].String())
	reach(t, "pod to the world", a.NS, addr("10.99.%d.254", 2), 7, "10.99.1.1")
	reach(t, "pod to the world, IPv6", a.NS, addr("2001:db8:%d::fe", 2), 7, "2001:db8:1::1")
	reach(t, "host to the world", n1.ns, addr("10.99.%d.254", 2), 7, "10.99.1.1")

	// A second apply changes nothing.
	for _, m := range []*machine{n1, n2} {
		before := dump(t, m)
		m.r.Update(m.in)
		m.await("a pass that changes nothing", func() bool { return dump(t, m) == before })
	}
}

// dump is all that the machine holds, without indexes and counters.
func dump(t testing.TB, m *machine) string {
	t.Helper()
	s, err := m.host.Snapshot(context.Background(), []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, l := range s.Links {
		fmt.Fprintf(&b, "link %s %s mtu %d up %t\n", l.Name, l.Kind, l.MTU, l.Up)
		n, err := m.host.Neighbours(context.Background(), l.Name)
		if err != nil {
			continue // it went meanwhile
		}
		for _, e := range n {
			fmt.Fprintf(&b, "neighbour %+v\n", e)
		}
	}
	fmt.Fprintf(&b, "addresses %+v\nrules %+v\nsysctls %v\n", s.Addresses, s.Rules, s.Sysctls)
	for _, r := range s.Routes {
		fmt.Fprintln(&b, "route", r)
	}
	return b.String()
}

func TestPodsCannotForgeSourcesNorReachWeft(t *testing.T) {
	l := newLab(t)
	n1, n2 := l.n[1], l.n[2]
	a, b := n1.pod("a", 10), n2.pod("b", 10)
	echo(t, b.NS, netip.AddrPortFrom(netip.IPv6Unspecified(), 7))
	reach(t, "honest", a.NS, b.v4, 7, a.v4.String())

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
	for range 20 {
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
	reach(t, "before", a.NS, b.v4, 7, a.v4.String())

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
	if drops(t, n1.host)["leak"] == before {
		t.Error("the host's own packet to a pod was not counted as leak")
	}
	for _, frame := range append(leaks1(), leaks2()...) {
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
	await(t, "the leak is captured", func() bool { return len(leaks()) > 0 })
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
	if drops(t, n1.host)["vxlan-stranger"] == before {
		t.Error("a stranger's VXLAN datagram was not counted")
	}
	_ = n2
}

func TestDamageIsRepaired(t *testing.T) {
	l := newLab(t)
	n1, n2 := l.n[1], l.n[2]
	a, b := n1.pod("a", 10), n2.pod("b", 10)
	echo(t, b.NS, netip.AddrPortFrom(netip.IPv6Unspecified(), 7))
	reach(t, "before", a.NS, b.v4, 7, a.v4.String())
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
			return netlink.RouteDel(&netlink.Route{Dst: &net.IPNet{IP: net.IP{10, 32, 0, 0}, Mask: net.CIDRMask(12, 32)},
				Type: unix.RTN_UNREACHABLE})
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
			await(t, "the machine is as before", func() bool { return dump(t, n1) == want })
			reach(t, "after", a.NS, b.v4, 7, a.v4.String())
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
		if now := dump(t, n1); now != before {
			t.Errorf("left behind:\n%s\nbefore:\n%s", now, before)
		}
	}
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
	reach(t, "IPv4", a.NS, b.v4, 7, a.v4.String())
	if notes := n1.r.Status().Notes; len(notes) != 1 || !strings.Contains(notes[0], "IPv4 only") {
		t.Errorf("notes: %q", notes)
	}
}
