package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strconv"

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
	ns   netns.NsHandle

	onHost, inPod end
	foreign       [2]bool // the pod has a default route of another's: IPv4, IPv6
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
	made, err := p.pair()
	if err == nil {
		if err = p.connect(); err != nil {
			err = fmt.Errorf("plug %s: %w", v.NetNS, explain(err))
		}
	}
	if err != nil && made {
		if l, ferr := h.nl.LinkByName(p.name); ferr == nil {
			_ = h.nl.LinkDel(l)
		}
	}
	return err
}

// pair makes the veth pair, unless it is there: then it takes from that what an earlier attachment gave it. made is whether
// there is a new one, also with an error.
func (p *plugging) pair() (made bool, err error) {
	made, err = p.make()
	if errors.Is(err, unix.EEXIST) {
		var there bool
		if there, err = p.existing(); err != nil || there {
			return false, err
		}
		made, err = p.make()
	}
	if err != nil {
		err = fmt.Errorf("make veth pair: %w", explain(err))
	}
	return made, err
}

func (p *plugging) make() (made bool, err error) {
	var b batch
	b.veth(p.name, p.mac, p.v.IfName, p.peer, p.v.MTU, int(p.ns))
	b.look(p.name, 0)
	err = p.h.talk.ask(&b, func(_ int, kind uint16, data []byte) {
		if kind == unix.RTM_NEWLINK {
			p.onHost = parseEnd(data)
		}
	})
	var no *refusal
	return err == nil || errors.As(err, &no) && no.request > 0, err
}

// existing prepares the pair that is in the way of a new one; there is none when it was but a leftover, which is removed.
func (p *plugging) existing() (there bool, err error) {
	pod, err := newHandle(p.ns)
	if err != nil {
		return false, err
	}
	defer pod.Close()
	inPod, err := pod.LinkByName(p.v.IfName)
	if err != nil && !gone(err) {
		return false, fmt.Errorf("find %s in %s: %w", p.v.IfName, p.v.NetNS, err)
	}
	onHost, err := p.h.nl.LinkByName(p.name)
	if err != nil && !gone(err) {
		return false, fmt.Errorf("find %s: %w", p.name, err)
	}
	if onHost != nil {
		if inPod != nil && inPod.Type() == "veth" && inPod.Attrs().HardwareAddr.String() == p.peer.String() &&
			inPod.Attrs().ParentIndex == onHost.Attrs().Index && onHost.Attrs().ParentIndex == inPod.Attrs().Index {
			if err := p.forget(pod, onHost, inPod); err != nil {
				return false, fmt.Errorf("plug %s: %w", p.v.NetNS, explain(err))
			}
			return true, nil // what is to be known of it came with the refusal to make another
		}
		// A leftover of the same name that leads elsewhere: its other end goes with it.
		if err := p.h.nl.LinkDel(onHost); err != nil && !gone(err) {
			return false, fmt.Errorf("remove leftover %s: %w", p.name, err)
		}
		if inPod, err = pod.LinkByName(p.v.IfName); err != nil && !gone(err) {
			return false, fmt.Errorf("find %s in %s: %w", p.v.IfName, p.v.NetNS, err)
		}
	}
	if inPod != nil {
		return false, &IfNameError{NetNS: p.v.NetNS, IfName: p.v.IfName}
	}
	return false, nil
}

// connect gives both ends what they need: first the host's, then, inside the pod's namespace, the pod's.
func (p *plugging) connect() error {
	if err := p.setHost(); err != nil {
		return err
	}
	var b batch
	b.raise(p.onHost, p.v.MTU)
	b.guarded(p.onHost)
	for _, f := range p.families() {
		b.neighbour(p.onHost.index, f.addr, p.peer)
		w := way{dst: netip.PrefixFrom(f.addr, f.addr.BitLen()), src: f.source, index: p.onHost.index, protocol: Protocol}
		if f.addr.Is6() {
			w.metric = kernelMetric6
		}
		b.route(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, w)
	}
	if err := p.h.talk.ask(&b, nil); err != nil {
		return fmt.Errorf("set up %s: %w", p.name, err)
	}
	return do(p.ns, func() error {
		t, err := newTalk()
		if err != nil {
			return err
		}
		defer t.close() //nolint:errcheck // everything was answered
		if err := p.connectPod(t); err != nil {
			return fmt.Errorf("set up the pod's %s: %w", p.v.IfName, err)
		}
		return nil
	})
}

// setHost writes the settings of the host's end. All of them are right already where nobody changed the machine's defaults: a
// link forwards as all do, and one that forwards takes no router advertisement but with accept_ra = 2.
func (p *plugging) setHost() error {
	key := "net/ipv6/conf/" + p.name + "/"
	var wanted []setting
	if !has(p.onHost.conf6, conf6Forwarding, 1) || !has(p.onHost.conf6, conf6AcceptRA, 1) {
		wanted = append(wanted, setting{key + "accept_ra", conf6AcceptRA, 0, false})
	}
	wanted = p.missing(p.onHost, append(wanted, setting{key + "disable_ipv6", conf6Disable, 0, true},
		setting{key + "forwarding", conf6Forwarding, 1, true}))
	if len(wanted) == 0 {
		return nil
	}
	return p.h.Do(func() error { return p.set(wanted) })
}

// connectPod runs inside the pod's namespace. Neighbours come after both ends are up: going up forgets them.
func (p *plugging) connectPod(t *talk) error {
	if err := p.lookIntoPod(t); err != nil {
		return err
	}
	pod6 := "net/ipv6/conf/" + p.v.IfName + "/"
	if err := p.set(p.missing(p.inPod, []setting{
		{pod6 + "accept_ra", conf6AcceptRA, 0, false},
		{pod6 + "accept_dad", conf6AcceptDAD, 0, false},
		{pod6 + "disable_ipv6", conf6Disable, 0, true},
	})); err != nil {
		return err
	}
	var b batch
	b.raise(end{index: loopback}, 0)
	b.raise(p.inPod, p.v.MTU)
	for _, f := range p.families() {
		b.address(p.inPod.index, f.addr)
		b.neighbour(p.inPod.index, f.gateway, p.mac)
		if f.addr.Is4() {
			b.route(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE,
				way{dst: netip.PrefixFrom(f.gateway, 32), index: p.inPod.index, protocol: unix.RTPROT_BOOT})
		}
		for _, dst := range p.through(f.addr) {
			b.route(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE,
				way{dst: dst, via: f.gateway, src: f.addr, index: p.inPod.index, protocol: unix.RTPROT_BOOT})
		}
	}
	return t.ask(&b, nil)
}

// lookRounds bounds how often the pod's routes are read when something changes them meanwhile.
const lookRounds = 10

// lookIntoPod learns what the pod's end is like, and whether the pod has a default route by another.
func (p *plugging) lookIntoPod(t *talk) (err error) {
	for range lookRounds {
		var b batch
		b.look("", p.onHost.peer)
		b.routes()
		p.foreign = [2]bool{}
		err = t.ask(&b, func(_ int, kind uint16, data []byte) {
			switch kind {
			case unix.RTM_NEWLINK:
				p.inPod = parseEnd(data)
			case unix.RTM_NEWROUTE:
				if fam, index, ok := isDefault(data); ok && index != p.onHost.peer {
					p.foreign[0], p.foreign[1] = p.foreign[0] || fam == unix.AF_INET, p.foreign[1] || fam == unix.AF_INET6
				}
			}
		})
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err == nil && p.inPod.index == 0 {
		err = unix.ENODEV
	}
	return err
}

// through lists what the pod reaches by its gateway: everything, or the pools where it has a default route of another's, which
// stays.
func (p *plugging) through(addr netip.Addr) []netip.Prefix {
	if addr.Is4() && !p.foreign[0] || addr.Is6() && !p.foreign[1] {
		return []netip.Prefix{netip.PrefixFrom(addr, 0).Masked()}
	}
	var pools []netip.Prefix
	for _, r := range p.v.Routes {
		if r.Addr().Is6() == addr.Is6() {
			pools = append(pools, r)
		}
	}
	return pools
}

type familyOf struct{ addr, gateway, source netip.Addr }

// families are those that the pod has an address of.
func (p *plugging) families() []familyOf {
	return slices.DeleteFunc([]familyOf{{p.v.V4, Gateway4, p.v.Source4}, {p.v.V6, Gateway6, p.v.Source6}},
		func(f familyOf) bool { return !f.addr.IsValid() })
}

// setting is one of a link's IPv6 settings.
type setting struct {
	key    string
	number int // the kernel's
	value  byte
	only6  bool // it matters to pods with IPv6 only
}

// missing lists those that an end does not have. A write to some of them spins while somebody else changes links, so none is
// made in vain.
func (p *plugging) missing(e end, all []setting) []setting {
	return slices.DeleteFunc(all, func(s setting) bool {
		return s.only6 && !p.v.V6.IsValid() || has(e.conf6, s.number, s.value)
	})
}

// set writes settings of the namespace that the thread is in. Where IPv6 is not wanted, they may not exist.
func (p *plugging) set(all []setting) error {
	for _, s := range all {
		err := writeSysctl(s.key, strconv.Itoa(int(s.value)))
		if err != nil && (p.v.V6.IsValid() || !errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	return nil
}

// forget removes what an earlier attachment under other addresses left: first the host's ways to them, then they
// themselves, so that at no moment somebody is reached under an address that is not the pod's any more.
func (p *plugging) forget(pod *netlink.Handle, onHost, inPod netlink.Link) error {
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
	addrs, err := pod.AddrList(inPod, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list the pod's addresses: %w", err)
	}
	for _, a := range addrs {
		if now, ok := toPrefix(a.IPNet); !ok || p.has(now.Addr()) || !now.Addr().IsGlobalUnicast() {
			continue
		}
		if err := pod.AddrDel(inPod, &a); err != nil && !gone(err) {
			return fmt.Errorf("take %s from the pod: %w", a.IPNet, err)
		}
	}
	return nil
}

func (p *plugging) has(a netip.Addr) bool { return a == p.v.V4 || a == p.v.V6 }

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
