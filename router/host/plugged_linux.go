package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// Plugged reports what is missing of a connection that Plug made; nil when it is whole. Of v it needs ID, NetNS, IfName and
// the addresses.
func (h *Host) Plugged(ctx context.Context, v Veth) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ns, err := openNetNS(v.NetNS)
	if err != nil {
		return err
	}
	defer ns.Close()
	pod, err := newHandle(ns)
	if err != nil {
		return err
	}
	defer pod.Close()
	onHost, err := up(h.nl, VethName(v.ID), "this machine")
	if err != nil {
		return err
	}
	inPod, err := up(pod, v.IfName, "the namespace")
	if err != nil {
		return err
	}
	if inPod.Attrs().ParentIndex != onHost.Attrs().Index {
		return fmt.Errorf("%s in the namespace is not the other end of %s", v.IfName, VethName(v.ID))
	}
	have, err := pod.AddrList(inPod, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list the pod's addresses: %w", err)
	}
	for _, want := range []struct{ addr, gateway netip.Addr }{{v.V4, Gateway4}, {v.V6, Gateway6}} {
		if !want.addr.IsValid() {
			continue
		}
		if !slices.ContainsFunc(have, func(a netlink.Addr) bool {
			p, ok := toPrefix(a.IPNet)
			return ok && p.Addr() == want.addr
		}) {
			return fmt.Errorf("%s in the namespace has lost the address %s", v.IfName, want.addr)
		}
		family := netlink.FAMILY_V4
		if want.addr.Is6() {
			family = netlink.FAMILY_V6
		}
		by := func(nl *netlink.Handle, l netlink.Link) ([]netlink.Route, error) {
			return nl.RouteListFiltered(family, &netlink.Route{LinkIndex: l.Attrs().Index}, netlink.RT_FILTER_OIF)
		}
		out, err1 := by(pod, inPod)
		in, err2 := by(h.nl, onHost)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		if !slices.ContainsFunc(out, func(r netlink.Route) bool { return toAddr(r.Gw) == want.gateway }) {
			return fmt.Errorf("the namespace has no route by %s", v.IfName)
		}
		if !slices.ContainsFunc(in, func(r netlink.Route) bool {
			dst, ok := toPrefix(r.Dst)
			return ok && dst == netip.PrefixFrom(want.addr, want.addr.BitLen())
		}) {
			return fmt.Errorf("this machine has no route to %s", want.addr)
		}
	}
	return nil
}

// up finds a device that must be there and up.
func up(nl *netlink.Handle, name, where string) (netlink.Link, error) {
	l, err := nl.LinkByName(name)
	switch {
	case err != nil && gone(err):
		return nil, fmt.Errorf("there is no %s in %s", name, where)
	case err != nil:
		return nil, fmt.Errorf("find %s: %w", name, err)
	case l.Attrs().Flags&net.FlagUp == 0:
		return nil, fmt.Errorf("%s in %s is down", name, where)
	}
	return l, nil
}
