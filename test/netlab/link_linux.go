package netlab

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Port is one end of a link to be: a device name on a host and the addresses it takes.
type Port struct {
	Host  *Host
	Name  string
	Addrs []netip.Prefix
}

// Port names the device of a link's end and its addresses, such as "198.18.1.2/24".
func (h *Host) Port(name string, addrs ...string) Port {
	p := Port{Host: h, Name: name}
	for _, s := range addrs {
		a, err := netip.ParsePrefix(s)
		h.lab.must(err, "link %s of %s", name, h.name)
		p.Addrs = append(p.Addrs, a)
	}
	return p
}

// Link is a cable: a veth pair whose ends lie on two hosts.
type Link struct {
	A, B Port
	lab  *Lab
}

// Link joins two ports; devices are made inside the namespaces, never outside.
func (l *Lab) Link(a, b Port) *Link {
	link := &Link{A: a, B: b, lab: l}
	l.must(link.create(), "link %s.%s to %s.%s", a.Host.name, a.Name, b.Host.name, b.Name)
	l.mu.Lock()
	l.links = append(l.links, link)
	l.mu.Unlock()
	return link
}

func (k *Link) create() error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: k.A.Name},
		PeerName:      k.B.Name,
		PeerNamespace: netlink.NsFd(k.B.Host.ns.Fd()),
	}
	if err := k.A.Host.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth: %w", err)
	}
	for _, p := range []Port{k.A, k.B} {
		if err := p.configure(); err != nil {
			return err
		}
	}
	return k.wait(Port.ready)
}

// upPatience bounds the wait for what the kernel does on threads of its own.
const upPatience = 30 * time.Second

// wait waits until both ends are as a check wants them.
func (k *Link) wait(check func(Port) error) error {
	const pause = time.Millisecond
	for _, p := range k.ports() {
		for deadline := time.Now().Add(Patience(upPatience)); ; time.Sleep(pause) {
			err := check(p)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("after %v: %w", Patience(upPatience), err)
			}
		}
	}
	return nil
}

// carrier checks that the kernel has noticed the cable, which it does a little later on its own: what is sent before is lost
// without a word.
func (p Port) carrier() error {
	dev, err := p.Host.nl.LinkByName(p.Name)
	if err != nil {
		return fmt.Errorf("find %s on %s: %w", p.Name, p.Host.name, err)
	}
	if dev.Attrs().OperState != netlink.OperUp {
		return fmt.Errorf("%s on %s has no carrier", p.Name, p.Host.name)
	}
	return nil
}

// ready checks the carrier, and that what comes to the IPv6 addresses is let in: the kernel does that later as well.
func (p Port) ready() error {
	if err := p.carrier(); err != nil {
		return err
	}
	for _, a := range p.Addrs {
		if !a.Addr().Is6() {
			continue
		}
		routes, err := p.Host.nl.RouteGet(a.Addr().AsSlice())
		if err != nil {
			return fmt.Errorf("find the way to %v on %s: %w", a.Addr(), p.Host.name, err)
		}
		if len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL {
			return fmt.Errorf("%v is not let in on %s: %v", a.Addr(), p.Host.name, routes)
		}
	}
	return nil
}

func (p Port) configure() error {
	h := p.Host
	dev, err := h.nl.LinkByName(p.Name)
	if err != nil {
		return fmt.Errorf("find %s on %s: %w", p.Name, h.name, err)
	}
	if h.kind == bridge {
		br, err := h.nl.LinkByName(bridgeName)
		if err != nil {
			return fmt.Errorf("find bridge of %s: %w", h.name, err)
		}
		if err := h.nl.LinkSetMaster(dev, br); err != nil {
			return fmt.Errorf("put %s on the bridge of %s: %w", p.Name, h.name, err)
		}
	}
	if err := h.nl.LinkSetUp(dev); err != nil {
		return fmt.Errorf("set %s up: %w", p.Name, err)
	}
	for _, a := range p.Addrs {
		if err := h.nl.AddrAdd(dev, netlinkAddr(a)); err != nil {
			return fmt.Errorf("add %v to %s: %w", a, p.Name, err)
		}
	}
	h.mu.Lock()
	h.addrs = append(h.addrs, p.Addrs...)
	h.mu.Unlock()
	return nil
}

// ports are both ends.
func (k *Link) ports() []Port { return []Port{k.A, k.B} }

// String names both ends.
func (k *Link) String() string {
	return k.A.Host.name + "." + k.A.Name + "-" + k.B.Host.name + "." + k.B.Name
}

// Down pulls the cable at end A; both ends lose their carrier.
func (k *Link) Down() { k.lab.must(k.A.set((*netlink.Handle).LinkSetDown), "set %v down", k) }

// Up plugs it in again and restores at end A what the kernel forgot: IPv6 addresses, and the routes that were made by Route.
func (k *Link) Up() {
	h := k.A.Host
	k.lab.must(k.A.set(func(nl *netlink.Handle, dev netlink.Link) error {
		if err := nl.LinkSetUp(dev); err != nil {
			return err
		}
		for _, a := range k.A.Addrs {
			if err := nl.AddrReplace(dev, netlinkAddr(a)); err != nil {
				return err
			}
		}
		return k.wait(Port.carrier)
	}), "set %v up", k)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.routes {
		_ = r.add(h) // one through another link may be down on its own account
	}
}

// AddAddr gives the device of h another address, such as "198.18.1.9/24".
func (h *Host) AddAddr(device, a string) {
	p := h.Port(device, a)
	h.lab.must(p.set(func(nl *netlink.Handle, dev netlink.Link) error { return nl.AddrReplace(dev, netlinkAddr(p.Addrs[0])) }),
		"add %s to %s of %s", a, device, h.name)
	h.mu.Lock()
	h.addrs = append(h.addrs, p.Addrs...)
	h.mu.Unlock()
}

// DelAddr takes an address away.
func (h *Host) DelAddr(device, a string) {
	p := h.Port(device, a)
	h.lab.must(p.set(func(nl *netlink.Handle, dev netlink.Link) error { return nl.AddrDel(dev, netlinkAddr(p.Addrs[0])) }),
		"remove %s from %s of %s", a, device, h.name)
	h.mu.Lock()
	h.addrs = slices.DeleteFunc(h.addrs, func(q netip.Prefix) bool { return q == p.Addrs[0] })
	h.mu.Unlock()
}

// netlinkAddr is the address for the kernel; an IPv6 one is usable at once, nobody else is on the cable.
func netlinkAddr(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

// SetMTU changes the MTU of both ends.
func (k *Link) SetMTU(mtu int) {
	for _, p := range k.ports() {
		k.lab.must(p.set(func(h *netlink.Handle, dev netlink.Link) error { return h.LinkSetMTU(dev, mtu) }), "set MTU of %v", k)
	}
}

func (p Port) set(f func(*netlink.Handle, netlink.Link) error) error {
	dev, err := p.Host.nl.LinkByName(p.Name)
	if err != nil {
		return fmt.Errorf("find %s on %s: %w", p.Name, p.Host.name, err)
	}
	return f(p.Host.nl, dev)
}

// LinkOf is the link that holds the device of that name on h.
func (h *Host) LinkOf(device string) *Link {
	for _, k := range h.lab.Links() {
		if slices.ContainsFunc(k.ports(), func(p Port) bool { return p.Host == h && p.Name == device }) {
			return k
		}
	}
	h.lab.must(fmt.Errorf("no such link"), "find link %s of %s", device, h.name)
	return nil
}

// Devices are the names of the host's network devices.
func (h *Host) Devices() []string {
	links, err := h.nl.LinkList()
	h.lab.must(err, "list devices of %s", h.name)
	var names []string
	for _, k := range links {
		names = append(names, k.Attrs().Name)
	}
	return names
}
