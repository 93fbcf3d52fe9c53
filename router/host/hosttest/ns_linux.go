package hosttest

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/router/host"
)

// NS is a network namespace that nothing but an open file holds: it ends with the test, and with the process after a
// panic.
type NS struct {
	Path string // for host.Open, host.Do and attach requests
	file *os.File
	t    testing.TB
}

// NewNS makes a namespace with loopback up. It skips the test without the rights.
func NewNS(t testing.TB) *NS {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("skipped: needs root to make network namespaces")
	}
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here, in the namespace that it made
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{nil, err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		done <- result{f, err}
	}()
	r := <-done
	if r.err != nil {
		t.Skipf("skipped: cannot make a network namespace: %v", r.err)
	}
	n := &NS{Path: fmt.Sprintf("/proc/self/fd/%d", r.file.Fd()), file: r.file, t: t}
	t.Cleanup(func() { _ = r.file.Close() })
	n.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return n
}

// Close gives the namespace up before the test ends.
func (n *NS) Close() { _ = n.file.Close() }

// Do runs fn inside and fails the test on an error.
func (n *NS) Do(fn func() error) {
	n.t.Helper()
	if err := host.Do(n.Path, fn); err != nil {
		n.t.Fatal(err)
	}
}

// Sysctl writes a value.
func (n *NS) Sysctl(key, value string) {
	n.t.Helper()
	n.Do(func() error { return os.WriteFile("/proc/sys/"+key, []byte(value), 0o644) })
}

// Host opens the namespace as a machine.
func (n *NS) Host() *host.Host {
	n.t.Helper()
	h, err := host.Open(n.Path, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = h.Close() })
	return h
}

// Wire joins two namespaces by a veth pair that is up at both ends, each with its addresses.
func Wire(t testing.TB, a *NS, nameA string, addrsA []string, b *NS, nameB string, addrsB []string) {
	t.Helper()
	a.Do(func() error {
		l := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: nameB, PeerNamespace: netlink.NsFd(b.file.Fd())}
		l.Name = nameA
		return netlink.LinkAdd(l)
	})
	a.Up(nameA, addrsA...)
	b.Up(nameB, addrsB...)
}

// Up gives a device addresses and brings it up.
func (n *NS) Up(name string, addrs ...string) {
	n.t.Helper()
	n.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if name != "lo" { // a link-local address would come up at a moment of its own
			const none = 1
			_ = netlink.LinkSetIP6AddrGenMode(l, none)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		for _, s := range addrs {
			a, err := netlink.ParseAddr(s)
			if err != nil {
				return err
			}
			a.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
		}
		return nil
	})
}

// Route adds a route by a gateway.
func (n *NS) Route(dst, via string) {
	n.t.Helper()
	n.Do(func() error {
		p := netip.MustParsePrefix(dst)
		ipn, err := netlink.ParseIPNet(p.String())
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: ipn, Gw: netip.MustParseAddr(via).AsSlice()})
	})
}
