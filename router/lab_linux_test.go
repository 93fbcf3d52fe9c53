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
	"sync/atomic"
	"testing"
	"time"

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

const patience = time.Minute

// counting is the real host; it counts passes and the changes that they made.
type counting struct {
	*host.Host
	passes, changes atomic.Int64
}

func (c *counting) Snapshot(ctx context.Context, sysctls []string) (*host.Snapshot, error) {
	c.passes.Add(1)
	return c.Host.Snapshot(ctx, sysctls)
}

func (c *counting) Apply(ctx context.Context, changes []host.Change) error {
	c.changes.Add(int64(len(changes)))
	return c.Host.Apply(ctx, changes)
}

func (c *counting) Filter(ctx context.Context, want host.Ruleset) (int, error) {
	n, err := c.Host.Filter(ctx, want)
	c.changes.Add(int64(n))
	return n, err
}

type machine struct {
	t    *testing.T
	ns   *hosttest.NS
	host *counting
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
		m.host = &counting{Host: m.ns.Host()}
		l.n[i] = m
	}
	for i := 1; i <= 2; i++ {
		m, o := l.n[i], 3-i
		m.in = router.Input{
			Self: id(i), Pools: pools, Blocks: blocks(i),
			Hosts:    []netip.Addr{addr("10.32.%d.1", 4*i), addr("fd77::10.32.%d.1", 4*i)},
			Underlay: []netip.Addr{addr("10.99.%d.1", i)}, UnderlayMTU: 1500,
			Trusted: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")},
			Peers: []router.Peer{{Blocks: blocks(o), Info: peer.Info{
				ID: id(o), State: peer.Alive, Known: true, MTU: 1500,
				Endpoints: []netip.AddrPort{netip.AddrPortFrom(addr("10.99.%d.1", o), 6783)}, Transports: []string{vxlan.Name},
				Trusted: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")},
			}}},
		}
	}
	for _, c := range change {
		c(l)
	}
	for i := 1; i <= 2; i++ {
		l.n[i].run()
	}
	for i := 1; i <= 2; i++ {
		l.n[i].whole()
	}
	return l
}

// directory tells what the input of a machine in the lab says.
type directory struct{ in router.Input }

func (d directory) Rest() time.Duration { return 0 }

func (d directory) Own() netip.Addr { return d.in.Hosts[0] }

// Address is the first but one of the peer's first block, as in the lab's inputs.
func (d directory) Address(id peer.ID) netip.Addr {
	for _, p := range d.in.Peers {
		if p.Info.ID == id {
			return p.Blocks[0].Addr().Next()
		}
	}
	return netip.Addr{}
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

// start runs a router, and waits until it reaches the peer that runs already.
func (m *machine) start() {
	m.t.Helper()
	m.run()
	m.whole()
}

func (m *machine) run() {
	m.t.Helper()
	w := &testLog{t: m.t, on: true}
	log := slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})).With("machine", m.in.Self.Short())
	r, err := router.New(router.Config{
		Host: m.host, Undo: m.undo, Log: log,
		Drivers: []router.Driver{vxlan.Driver(m.host, m.in.Self, directory{m.in}, log), vxlan.Driver6(m.host, m.in.Self, directory{m.in}, log)},
	})
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
}

func (m *machine) whole() {
	m.t.Helper()
	m.await("ready, with its peer by vxlan", func() bool {
		s := m.r.Status()
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

// ask sends datagrams, one at least, until one is answered, and tells from which address the other end saw them.
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
	for end, first := time.Now().Add(within), true; first || time.Now().Before(end); first = false {
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

// reach expects an answer of the echo on port 7 of to, which sees from as the asker.
func reach(t *testing.T, what string, ns *hosttest.NS, to netip.Addr, from string) {
	t.Helper()
	seen, err := "", error(nil)
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(10 * time.Millisecond) { // no way yet is no answer yet
		if seen, err = ask(ns, netip.AddrPortFrom(to, 7), time.Until(end)); err == nil {
			break
		}
	}
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
	await(t, what+" is counted as "+reason, func() bool { return drops(t, m.host)[reason] > before })
}

func drops(t testing.TB, h router.Host) host.Drops {
	t.Helper()
	d, err := h.Drops(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// leaks are frames that carry an address of the pools outside of a VXLAN datagram.
type leaks struct {
	mu    sync.Mutex // guards found
	found [][]byte
	end   func() // once all that was waiting has been read
}

func (l *leaks) soFar() [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.found
}

func (l *leaks) all() [][]byte {
	l.end()
	return l.soFar()
}

// capture looks for leaks among the frames that pass a device.
func capture(t *testing.T, ns *hosttest.NS, device string) *leaks {
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
	l := &leaks{}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 65536)
		for {
			n, err := f.Read(b)
			if err != nil {
				return
			}
			if clearText(b[:n]) {
				l.mu.Lock()
				l.found = append(l.found, bytes.Clone(b[:n]))
				l.mu.Unlock()
			}
		}
	})
	l.end = sync.OnceFunc(func() {
		_ = f.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		wg.Wait()
		_ = f.Close()
	})
	t.Cleanup(l.end)
	return l
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
