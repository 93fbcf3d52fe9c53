package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// plugging is one pod's connection in the making.
type plugging struct {
	h    *Host
	v    Veth
	name string // of the host's end
	mac  net.HardwareAddr
	peer net.HardwareAddr // of the pod's end

	ns  netns.NsHandle
	pod *netlink.Handle
}

// Plug connects a pod's network namespace to the host by a veth pair with point-to-point addresses: the pod sends
// everything to a gateway that exists only as a permanent neighbour entry, and the host has one route and one permanent
// neighbour entry per address. So there is no ARP, no duplicate address detection and no router advertisement to wait
// for or to forge. Plugging again changes nothing; a failure half way leaves nothing behind.
func (h *Host) Plug(ctx context.Context, v Veth) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	if v.NetNS == "" {
		return h.plugLoose(ctx, v)
	}
	if v.IfName == "" || len(v.IfName) >= unix.IFNAMSIZ {
		return fmt.Errorf("plug %s: bad interface name %q", v.NetNS, v.IfName)
	}
	p := &plugging{h: h, v: v, name: VethName(v.ID), mac: vethMAC(v.ID, "host")}
	_, mac := v.MACs()
	if p.peer, err = net.ParseMAC(mac); err != nil {
		return fmt.Errorf("plug %s: %w", v.NetNS, err)
	}
	if p.ns, err = openNetNS(v.NetNS); err != nil {
		return err
	}
	defer p.ns.Close()
	if p.ns.Equal(h.ns) {
		return &NetNSError{v.NetNS, "this is the host's own namespace; weft attaches namespaces of containers", unix.EINVAL}
	}
	if p.pod, err = newHandle(p.ns); err != nil {
		return err
	}
	defer p.pod.Close()

	onHost, inPod, made, err := p.pair()
	if err == nil {
		if err = p.setUp(onHost, inPod, made); err != nil {
			err = fmt.Errorf("plug %s: %w", v.NetNS, explain(err))
		}
	}
	if err != nil {
		if made {
			if l, ferr := h.nl.LinkByName(p.name); ferr == nil {
				_ = h.nl.LinkDel(l)
			}
		}
		return err
	}
	return nil
}

// pair makes the veth pair, unless it is there as it should be.
func (p *plugging) pair() (onHost, inPod netlink.Link, made bool, err error) {
	err = p.make()
	if errors.Is(err, unix.EEXIST) {
		if onHost, inPod, err = p.existing(); err != nil || onHost != nil {
			return onHost, inPod, false, err
		}
		err = p.make()
	}
	if err != nil {
		return nil, nil, false, fmt.Errorf("make veth pair: %w", explain(err))
	}
	if onHost, err = p.h.nl.LinkByName(p.name); err == nil {
		inPod, err = p.pod.LinkByIndex(onHost.Attrs().ParentIndex)
	}
	if err != nil {
		return nil, nil, true, fmt.Errorf("find what was made: %w", err)
	}
	return onHost, inPod, true, nil
}

func (p *plugging) make() error {
	l := &netlink.Veth{
		LinkAttrs: netlink.NewLinkAttrs(), PeerName: p.v.IfName, PeerHardwareAddr: p.peer,
		PeerNamespace: netlink.NsFd(p.ns), PeerMTU: uint32(p.v.MTU),
	}
	l.Name, l.HardwareAddr, l.MTU, l.GSOMaxSize = p.name, p.mac, p.v.MTU, MaxSuperPacket
	return p.h.nl.LinkAdd(l)
}

// existing finds the pair that is in the way of a new one: both nil when there was but a leftover, which is removed.
func (p *plugging) existing() (onHost, inPod netlink.Link, err error) {
	if inPod, err = p.pod.LinkByName(p.v.IfName); err != nil && !gone(err) {
		return nil, nil, fmt.Errorf("find %s in %s: %w", p.v.IfName, p.v.NetNS, err)
	}
	if onHost, err = p.h.nl.LinkByName(p.name); err != nil && !gone(err) {
		return nil, nil, fmt.Errorf("find %s: %w", p.name, err)
	}
	if onHost != nil {
		if inPod != nil && inPod.Type() == "veth" && inPod.Attrs().HardwareAddr.String() == p.peer.String() &&
			inPod.Attrs().ParentIndex == onHost.Attrs().Index && onHost.Attrs().ParentIndex == inPod.Attrs().Index {
			return onHost, inPod, nil
		}
		// A leftover of the same name that leads elsewhere: its other end goes with it.
		if err := p.h.nl.LinkDel(onHost); err != nil && !gone(err) {
			return nil, nil, fmt.Errorf("remove leftover %s: %w", p.name, err)
		}
		if inPod, err = p.pod.LinkByName(p.v.IfName); err != nil && !gone(err) {
			return nil, nil, fmt.Errorf("find %s in %s: %w", p.v.IfName, p.v.NetNS, err)
		}
	}
	if inPod != nil {
		return nil, nil, &IfNameError{NetNS: p.v.NetNS, IfName: p.v.IfName}
	}
	return nil, nil, nil
}

func (p *plugging) setUp(onHost, inPod netlink.Link, made bool) error {
	h := p.h
	// What a pod sends whole must fit what a TUN device hands over whole, or the kernel cuts it into single packets there.
	for _, end := range []struct {
		nl   *netlink.Handle
		link netlink.Link
	}{{h.nl, onHost}, {p.pod, inPod}} {
		if end.link.Attrs().GSOMaxSize <= MaxSuperPacket {
			continue
		}
		if err := end.nl.LinkSetGSOMaxSize(end.link, MaxSuperPacket); err != nil {
			return fmt.Errorf("limit super-packets of %s: %w", end.link.Attrs().Name, err)
		}
	}
	if h.kernelIPv6() {
		if err := h.nl.LinkSetIP6AddrGenMode(onHost, nl6AddrGenNone); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("keep %s from inventing an address: %w", p.name, err)
		}
	}
	// The reverse path filter is strict here: a second guard against forged sources that needs no nftables.
	host4, host6, pod6 := "net/ipv4/conf/"+p.name+"/", "net/ipv6/conf/"+p.name+"/", "net/ipv6/conf/"+p.v.IfName+"/"
	onHost6, inPod6 := []Sysctl{{host6 + "accept_ra", "0"}}, []Sysctl{{pod6 + "accept_ra", "0"}, {pod6 + "accept_dad", "0"}}
	want6 := p.v.V6.IsValid()
	if want6 {
		onHost6 = append(onHost6, Sysctl{host6 + "disable_ipv6", "0"}, Sysctl{host6 + "forwarding", "1"})
		inPod6 = append(inPod6, Sysctl{pod6 + "disable_ipv6", "0"})
	}
	if err := setSysctls(h.ns, want6, []Sysctl{{host4 + "rp_filter", "1"}}, onHost6); err != nil {
		return err
	}
	if err := setSysctls(p.ns, want6, nil, inPod6); err != nil {
		return err
	}
	if lo, err := p.pod.LinkByName("lo"); err == nil && lo.Attrs().Flags&net.FlagUp == 0 {
		if err := p.pod.LinkSetUp(lo); err != nil {
			return fmt.Errorf("bring up the pod's loopback: %w", err)
		}
	}
	for _, end := range []struct {
		nl *netlink.Handle
		l  netlink.Link
	}{{h.nl, onHost}, {p.pod, inPod}} {
		if end.l.Attrs().MTU != p.v.MTU {
			if err := end.nl.LinkSetMTU(end.l, p.v.MTU); err != nil {
				return fmt.Errorf("set mtu: %w", err)
			}
		}
		if end.l.Attrs().Flags&net.FlagUp == 0 {
			if err := end.nl.LinkSetUp(end.l); err != nil {
				return fmt.Errorf("bring up %s: %w", end.l.Attrs().Name, err)
			}
		}
	}
	if !made {
		if err := p.forget(onHost, inPod); err != nil {
			return err
		}
	}
	for _, f := range []struct{ addr, gateway, source netip.Addr }{
		{p.v.V4, Gateway4, p.v.Source4}, {p.v.V6, Gateway6, p.v.Source6},
	} {
		if !f.addr.IsValid() {
			continue
		}
		if err := p.family(onHost, inPod, f.addr, f.gateway, f.source); err != nil {
			return err
		}
	}
	return nil
}

// forget removes what an earlier attachment under other addresses left: first the host's ways to them, then they
// themselves, so that at no moment somebody is reached under an address that is not the pod's any more.
func (p *plugging) forget(onHost, inPod netlink.Link) error {
	for _, family := range p.h.families() {
		by := netlink.Route{LinkIndex: onHost.Attrs().Index}
		routes, err := p.h.nl.RouteListFiltered(family, &by, netlink.RT_FILTER_OIF)
		if err != nil {
			return fmt.Errorf("list routes to the pod: %w", err)
		}
		for _, r := range routes {
			if dst, ok := toPrefix(r.Dst); !ok || r.Protocol != Protocol || p.has(dst.Addr()) {
				continue
			}
			if err := p.h.nl.RouteDel(&r); err != nil && !gone(err) {
				return fmt.Errorf("remove the route to %s: %w", r.Dst, err)
			}
		}
		entries, err := p.h.nl.NeighList(onHost.Attrs().Index, family)
		if err != nil {
			return fmt.Errorf("list neighbours of %s: %w", p.name, err)
		}
		for _, e := range entries {
			if e.State&unix.NUD_PERMANENT == 0 || p.has(toAddr(e.IP)) || !toAddr(e.IP).IsGlobalUnicast() {
				continue
			}
			if err := p.h.nl.NeighDel(&e); err != nil && !gone(err) {
				return fmt.Errorf("forget neighbour %s: %w", e.IP, err)
			}
		}
	}
	addrs, err := p.pod.AddrList(inPod, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list the pod's addresses: %w", err)
	}
	for _, a := range addrs {
		if now, ok := toPrefix(a.IPNet); !ok || p.has(now.Addr()) || !now.Addr().IsGlobalUnicast() {
			continue
		}
		if err := p.pod.AddrDel(inPod, &a); err != nil && !gone(err) {
			return fmt.Errorf("take %s from the pod: %w", a.IPNet, err)
		}
	}
	return nil
}

func (p *plugging) has(a netip.Addr) bool { return a == p.v.V4 || a == p.v.V6 }

// family gives the pod its address and way out, and the host its way in. Neighbours come after both ends are up: going
// up forgets them.
func (p *plugging) family(onHost, inPod netlink.Link, addr, gateway, source netip.Addr) error {
	host := netip.PrefixFrom(addr, addr.BitLen())
	a := &netlink.Addr{IPNet: toIPNet(host)}
	family := netlink.FAMILY_V4
	if addr.Is6() {
		a.Flags, family = unix.IFA_F_NODAD, netlink.FAMILY_V6
	}
	if err := p.pod.AddrReplace(inPod, a); err != nil {
		return fmt.Errorf("give the pod %s: %w", addr, err)
	}
	if err := neighbour(p.pod, inPod, gateway, p.mac); err != nil {
		return fmt.Errorf("tell the pod its gateway: %w", err)
	}
	if err := neighbour(p.h.nl, onHost, addr, p.peer); err != nil {
		return fmt.Errorf("tell the host of %s: %w", addr, err)
	}
	if err := p.podRoutes(inPod, family, addr, gateway); err != nil {
		return err
	}
	route := Route{Dst: host, Link: p.name, Src: source}
	if err := p.h.changeRoute(Set, &route, map[string]int{p.name: onHost.Attrs().Index}); err != nil {
		return fmt.Errorf("route %s: %w", addr, err)
	}
	return nil
}

// podRoutes leads everything to the gateway. Where the pod has a default route by another interface, that one stays, and
// only the pools come to us.
func (p *plugging) podRoutes(inPod netlink.Link, family int, addr, gateway netip.Addr) error {
	index := inPod.Attrs().Index
	routes, err := p.pod.RouteList(nil, family)
	if err != nil {
		return fmt.Errorf("list the pod's routes: %w", err)
	}
	foreign := false
	for _, r := range routes {
		if dst, ok := toPrefix(r.Dst); ok && dst.Bits() == 0 && r.Type == unix.RTN_UNICAST && r.LinkIndex != index {
			foreign = true
		}
	}
	if family == netlink.FAMILY_V4 {
		onlink := &netlink.Route{LinkIndex: index, Dst: toIPNet(netip.PrefixFrom(gateway, 32)), Scope: netlink.SCOPE_LINK}
		if err := p.pod.RouteReplace(onlink); err != nil {
			return fmt.Errorf("route the pod to its gateway: %w", err)
		}
	}
	var via []netip.Prefix
	if foreign {
		for _, r := range p.v.Routes {
			if r.Addr().Is6() == addr.Is6() {
				via = append(via, r)
			}
		}
	} else {
		via = []netip.Prefix{netip.PrefixFrom(addr, 0).Masked()}
	}
	for _, dst := range via {
		r := &netlink.Route{LinkIndex: index, Dst: toIPNet(dst), Gw: toIP(gateway), Src: toIP(addr), Family: family}
		if err := p.pod.RouteReplace(r); err != nil {
			return fmt.Errorf("route the pod to %s: %w", dst, err)
		}
	}
	return nil
}

func neighbour(nl *netlink.Handle, l netlink.Link, addr netip.Addr, mac net.HardwareAddr) error {
	family := netlink.FAMILY_V4
	if addr.Is6() {
		family = netlink.FAMILY_V6
	}
	return nl.NeighSet(&netlink.Neigh{
		LinkIndex: l.Attrs().Index, Family: family, State: unix.NUD_PERMANENT, IP: toIP(addr),
		HardwareAddr: mac,
	})
}

// setSysctls writes the values inside ns. Where IPv6 is not wanted, its values may be missing.
func setSysctls(ns netns.NsHandle, want6 bool, v4, v6 []Sysctl) error {
	return do(ns, func() error {
		for _, s := range v4 {
			if err := writeSysctl(s.Key, s.Value); err != nil {
				return err
			}
		}
		for _, s := range v6 {
			if err := writeSysctl(s.Key, s.Value); err != nil && (want6 || !errors.Is(err, fs.ErrNotExist)) {
				return err
			}
		}
		return nil
	})
}
