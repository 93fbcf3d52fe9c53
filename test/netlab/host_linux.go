package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

type kind uint8

const (
	plain  kind = iota // a host
	pod                // a bare namespace
	router             // forwards, and is where cuts are made
	bridge             // a switch: one bridge device, enslaves every port
)

// bridgeName is the device of a switch.
const bridgeName = "br0"

// Host is one network namespace: a machine, a pod, a router or a switch.
type Host struct {
	lab    *Lab
	name   string
	kind   kind
	ns     *os.File
	nl     *netlink.Handle
	parent *Host // of a pod

	mu     sync.Mutex
	addrs  []netip.Prefix
	routes []route
	filter *filter
	dir    string
	ncmd   int
}

// Host makes a machine: lo is up, nothing else.
func (l *Lab) Host(name string) *Host { return l.add(name, plain, nil) }

// Router makes a machine that forwards IPv4 and IPv6 between its links.
func (l *Lab) Router(name string) *Host {
	h := l.add(name, router, nil)
	h.Sysctl("net.ipv4.ip_forward", "1")
	h.Sysctl("net.ipv6.conf.all.forwarding", "1")
	return h
}

// Switch makes an Ethernet switch; the ends of links that it holds take no addresses.
func (l *Lab) Switch(name string) *Host {
	h := l.add(name, bridge, nil)
	l.must(h.nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}), "add bridge on %s", name)
	l.must(h.linkUp(bridgeName), "start bridge on %s", name)
	return h
}

// Pod makes the bare namespace of a container on h, with lo up, as a container runtime hands it over. Its Path is what
// goes to an attach command.
func (h *Host) Pod(name string) *Host { return h.lab.add(h.name+"-"+name, pod, h) }

func (l *Lab) add(name string, k kind, parent *Host) *Host {
	h := &Host{lab: l, name: name, kind: k, parent: parent}
	l.must(h.create(), "make host %s", name)
	l.mu.Lock()
	l.hosts = append(l.hosts, h)
	l.mu.Unlock()
	// Fixed values, not those that the machine passes on to new namespaces.
	for key, v := range map[string]string{
		"net.ipv4.conf.all.rp_filter":          "0",
		"net.ipv4.conf.default.rp_filter":      "0",
		"net.ipv4.ip_forward":                  "0",
		"net.ipv6.conf.all.disable_ipv6":       "0",
		"net.ipv6.conf.default.disable_ipv6":   "0",
		"net.ipv6.conf.default.accept_dad":     "0",
		"net.ipv6.conf.default.accept_ra":      "0",
		"net.ipv6.conf.all.forwarding":         "0",
		"net.ipv4.icmp_ratelimit":              "0",
		"net.ipv6.icmp.ratelimit":              "0",
		"net.ipv4.conf.default.forwarding":     "0",
		"net.ipv4.conf.all.accept_redirects":   "0",
		"net.ipv4.conf.default.send_redirects": "0",
		"net.ipv4.conf.all.send_redirects":     "0",
	} {
		if err := h.sysctl(key, v); err != nil && !strings.HasPrefix(key, "net.ipv6.") {
			l.must(err, "make host %s", name)
		}
	}
	l.must(h.linkUp("lo"), "make host %s", name)
	return h
}

// create makes the namespace and pins it below /run/netns.
func (h *Host) create() error {
	if h.name == "" || strings.ContainsAny(h.name, "/. \x00") {
		return fmt.Errorf("bad name %q", h.name)
	}
	if err := h.lab.ctx.Err(); err != nil {
		return errors.New("the lab is closed")
	}
	mark, err := os.OpenFile(filepath.Join(h.lab.dir, nsDir, h.name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("register namespace: %w", err)
	}
	_ = mark.Close()
	f, err := os.OpenFile(h.Path(), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	_ = f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", h.Path(), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin network namespace: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if h.ns, err = os.Open(h.Path()); err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	if h.nl, err = netlink.NewHandleAt(netns.NsHandle(h.ns.Fd()), unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	h.nl.RetryInterrupted() // devices come and go while they are listed
	return nil
}

func (h *Host) release() {
	if h.nl != nil {
		h.nl.Close()
	}
	if h.ns != nil {
		_ = h.ns.Close()
	}
}

// Name is what the host was called.
func (h *Host) Name() string { return h.name }

// String is Name.
func (h *Host) String() string { return h.name }

// Lab is where the host stands.
func (h *Host) Lab() *Lab { return h.lab }

// Parent is the host that a pod runs on, nil for all others.
func (h *Host) Parent() *Host { return h.parent }

// NSName is the name of the namespace as iproute2 knows it.
func (h *Host) NSName() string { return h.lab.name + "-" + h.name }

// Path is where the namespace is pinned.
func (h *Host) Path() string { return filepath.Join(netnsDir, h.NSName()) }

// Dir is the host's scratch directory, readable by root only, gone with the lab.
func (h *Host) Dir() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dir == "" {
		dir := filepath.Join(h.lab.dir, h.name)
		h.lab.must(os.MkdirAll(dir, 0o700), "make scratch directory of %s", h.name)
		h.dir = dir
	}
	return h.dir
}

// Addrs are the addresses given by Link, in order, without their prefix length.
func (h *Host) Addrs() []netip.Addr {
	var out []netip.Addr
	for _, p := range h.Prefixes() {
		out = append(out, p.Addr())
	}
	return out
}

// Addr4 is the first IPv4 address given by Link.
func (h *Host) Addr4() netip.Addr { return h.first(netip.Addr.Is4) }

// Addr6 is the first IPv6 address given by Link.
func (h *Host) Addr6() netip.Addr { return h.first(netip.Addr.Is6) }

func (h *Host) first(is func(netip.Addr) bool) netip.Addr {
	for _, a := range h.Addrs() {
		if is(a) {
			return a
		}
	}
	return netip.Addr{}
}

// Prefixes are the addresses given by Link with their prefix length.
func (h *Host) Prefixes() []netip.Prefix {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.addrs)
}

// Do runs f on a locked thread inside the host's namespace and returns its error. Goroutines that f starts run outside;
// sockets that it opens stay inside. A panic of f is passed on.
func (h *Host) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", h.name, err)
		}
		return f()
	})
}

// Sysctl sets a value such as net.ipv4.ip_forward in the host's namespace.
func (h *Host) Sysctl(key, value string) {
	h.lab.must(h.sysctl(key, value), "set %s on %s", key, h.name)
}

func (h *Host) sysctl(key, value string) error {
	if !strings.HasPrefix(key, "net.") {
		return fmt.Errorf("set %s: it belongs to the whole machine", key)
	}
	return h.Do(func() error {
		return os.WriteFile("/proc/sys/"+strings.ReplaceAll(key, ".", "/"), []byte(value), 0o644)
	})
}

type route struct {
	dst netip.Prefix
	via netip.Addr
}

func (r route) add(h *Host) error {
	return h.nl.RouteReplace(&netlink.Route{Dst: ipNet(r.dst), Gw: r.via.AsSlice()})
}

// Route sends what goes to dst through via.
func (h *Host) Route(dst netip.Prefix, via netip.Addr) {
	r := route{dst.Masked(), via}
	h.lab.must(r.add(h), "route %v via %v on %s", dst, via, h.name)
	h.mu.Lock()
	h.routes = append(h.routes, r)
	h.mu.Unlock()
}

// DefaultVia sends everything of the address's family through via.
func (h *Host) DefaultVia(via ...netip.Addr) {
	for _, a := range via {
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if a.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		h.Route(all, a)
	}
}

// Listen opens a stream listener inside the host.
func (h *Host) Listen(network, address string) (net.Listener, error) {
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// ListenPacket opens a datagram socket inside the host.
func (h *Host) ListenPacket(network, address string) (net.PacketConn, error) {
	var c net.PacketConn
	err := h.Do(func() (err error) {
		c, err = net.ListenPacket(network, address)
		return err
	})
	return c, err
}

// Dial connects from inside the host. The address is a literal: resolvers run on threads of their own.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var c net.Conn
	err := h.Do(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

func (h *Host) linkUp(name string) error {
	dev, err := h.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := h.nl.LinkSetUp(dev); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// onThread runs f on a locked thread and brings the thread back to the namespace that it had, whatever f did to it. A
// thread that cannot be brought back is never used again.
func onThread(f func() error) (err error) {
	type outcome struct {
		err      error
		panicked any
		finished bool
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- outcome{err: fmt.Errorf("open own namespace: %w", err), finished: true}
			return
		}
		defer func() {
			if !o.finished {
				o.panicked = recover()
			}
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			_ = home.Close()
			done <- o
		}()
		o.err = f()
		o.finished = true
	}()
	o := <-done
	switch {
	case o.finished:
		return o.err
	case o.panicked != nil:
		panic(o.panicked)
	}
	return errors.New("the function ended its goroutine (FailNow belongs to the goroutine of the test)")
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// AddrPort4 is Addr4 with a port.
func (h *Host) AddrPort4(port uint16) netip.AddrPort { return netip.AddrPortFrom(h.Addr4(), port) }

// AddrPort6 is Addr6 with a port.
func (h *Host) AddrPort6(port uint16) netip.AddrPort { return netip.AddrPortFrom(h.Addr6(), port) }
