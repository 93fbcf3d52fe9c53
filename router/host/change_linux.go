package host

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Apply carries out the changes in order and stops at the first that fails.
func (h *Host) Apply(ctx context.Context, changes []Change) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	indexes := make(map[string]int)
	for _, c := range changes {
		if err := ctx.Err(); err != nil {
			return err
		}
		var err error
		switch {
		case c.Link != nil:
			clear(indexes)
			err = h.changeLink(c.Op, c.Link)
		case c.Address != nil:
			err = h.changeAddress(c.Op, c.Address)
		case c.Route != nil:
			err = h.changeRoute(c.Op, c.Route, indexes)
		case c.Rule != nil:
			err = h.changeRule(c.Op, c.Rule)
		case c.Gate != nil:
			err = h.changeGate(c.Op, c.Gate)
		case c.Neighbour != nil:
			err = h.changeNeighbour(c.Op, c.Neighbour, indexes)
		case c.Sysctl != nil:
			err = h.Do(func() error { return writeSysctl(c.Sysctl.Key, c.Sysctl.Value) })
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c, explain(err))
		}
	}
	return nil
}

// gone reports whether err says that what was to be deleted is not there.
func gone(err error) bool {
	var noLink netlink.LinkNotFoundError
	return errors.As(err, &noLink) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) ||
		errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EADDRNOTAVAIL)
}

func (h *Host) changeLink(op Op, want *Link) error {
	l, err := h.nl.LinkByName(want.Name)
	if op == Delete {
		if err == nil {
			err = h.nl.LinkDel(l)
		}
		if gone(err) {
			return nil
		}
		return err
	}
	if err != nil && gone(err) {
		switch {
		case want.VXLAN != nil:
			l, err = h.addVXLAN(want)
		case want.Kind == KindWireGuard:
			l, err = h.addWireGuard(want)
		}
		if err == nil {
			err = h.gateNew(want.Name, l.Attrs().Index)
		}
	}
	if err != nil {
		return err
	}
	if want.MTU != 0 && l.Attrs().MTU != want.MTU {
		if err := h.nl.LinkSetMTU(l, want.MTU); err != nil {
			return fmt.Errorf("set mtu: %w", err)
		}
	}
	if up := l.Attrs().Flags&net.FlagUp != 0; up != want.Up {
		if want.Up {
			return h.nl.LinkSetUp(l)
		}
		return h.nl.LinkSetDown(l)
	}
	return nil
}

// addVXLAN makes a device that knows nothing but what it is told: no learning, no default remote, no IPv6 address of its
// own, no answer to router advertisements.
func (h *Host) addVXLAN(want *Link) (netlink.Link, error) {
	mac, err := net.ParseMAC(want.MAC)
	if err != nil {
		return nil, err
	}
	l := &netlink.Vxlan{LinkAttrs: netlink.NewLinkAttrs(), VxlanId: want.VXLAN.VNI, Port: int(want.VXLAN.Port), NoAge: true}
	l.Name, l.HardwareAddr, l.MTU = want.Name, mac, want.MTU
	if want.VXLAN.IPv6 {
		l.SrcAddr = net.IPv6unspecified // none: it names the family
	}
	if err := h.nl.LinkAdd(l); err != nil {
		return nil, fmt.Errorf("make device: %w", err)
	}
	if h.kernelIPv6() {
		if err := h.nl.LinkSetIP6AddrGenMode(l, nl6AddrGenNone); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return nil, fmt.Errorf("keep the device from inventing an address: %w", err)
		}
	}
	return h.nl.LinkByName(want.Name)
}

// nl6AddrGenNone is IN6_ADDR_GEN_MODE_NONE: no link-local address comes up with the device.
const nl6AddrGenNone = 1

func (h *Host) changeAddress(op Op, want *Address) error {
	l, err := h.nl.LinkByName(want.Link)
	if err == nil {
		a := &netlink.Addr{IPNet: toIPNet(want.Prefix)}
		if op == Delete {
			err = h.nl.AddrDel(l, a)
		} else {
			if want.Prefix.Addr().Is6() {
				a.Flags = unix.IFA_F_NODAD
			}
			if want.Passive {
				a.ValidLft, a.PreferedLft = math.MaxUint32, 0
			}
			err = h.nl.AddrReplace(l, a)
		}
	}
	if op == Delete && gone(err) {
		return nil
	}
	return err
}

func (h *Host) linkIndex(name string, known map[string]int) (int, error) {
	if i, ok := known[name]; ok {
		return i, nil
	}
	l, err := h.nl.LinkByName(name)
	if err != nil {
		return 0, err
	}
	known[name] = l.Attrs().Index
	return l.Attrs().Index, nil
}

func (h *Host) changeRoute(op Op, want *Route, indexes map[string]int) error {
	r := &netlink.Route{
		Dst: toIPNet(want.Dst), Protocol: Protocol, Priority: want.Metric, MTU: want.MTU,
		Table: unix.RT_TABLE_MAIN, Src: toIP(want.Src), Family: netlink.FAMILY_V4,
	}
	if want.Dst.Addr().Is6() {
		r.Family = netlink.FAMILY_V6
		if want.Metric == 0 {
			r.Priority = kernelMetric6
		}
	}
	if want.Kind == Unreachable {
		r.Type = unix.RTN_UNREACHABLE
	} else {
		i, err := h.linkIndex(want.Link, indexes)
		if err != nil {
			if op == Delete && gone(err) {
				return nil // went with its device
			}
			return err
		}
		r.LinkIndex = i
		if want.Via.IsValid() {
			r.Gw, r.Flags = toIP(want.Via), int(netlink.FLAG_ONLINK)
		} else if r.Family == netlink.FAMILY_V4 {
			r.Scope = netlink.SCOPE_LINK
		}
	}
	if op == Delete {
		// The kernel compares what is named: prefix, metric, device and next hop are enough.
		r.Src, r.MTU = nil, 0
		if err := h.nl.RouteDel(r); err != nil && !gone(err) {
			return err
		}
		return nil
	}
	return h.nl.RouteReplace(r)
}

func (h *Host) changeRule(op Op, want *Rule) error {
	r := netlink.NewRule()
	r.Priority, r.IifName, r.Protocol, r.Family = want.Priority, want.IIf, Protocol, netlink.FAMILY_V4
	if want.V6 {
		r.Family = netlink.FAMILY_V6
	}
	if want.From.IsValid() {
		r.Src = toIPNet(want.From)
	}
	if want.To.IsValid() {
		r.Dst = toIPNet(want.To)
	}
	if want.Drop {
		r.Type = unix.RTN_BLACKHOLE
	} else {
		r.Table = unix.RT_TABLE_MAIN
	}
	if op == Delete {
		if err := h.nl.RuleDel(r); err != nil && !gone(err) {
			return err
		}
		return nil
	}
	if err := h.nl.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func (h *Host) changeNeighbour(op Op, want *Neighbour, indexes map[string]int) error {
	i, err := h.linkIndex(want.Link, indexes)
	if err != nil {
		if op == Delete && gone(err) {
			return nil
		}
		return err
	}
	mac, err := net.ParseMAC(want.MAC)
	if err != nil {
		return err
	}
	n := &netlink.Neigh{LinkIndex: i, IP: toIP(want.Addr), HardwareAddr: mac, State: unix.NUD_PERMANENT}
	switch {
	case want.Underlay:
		n.Family, n.Flags = unix.AF_BRIDGE, unix.NTF_SELF
	case want.Addr.Is6():
		n.Family = netlink.FAMILY_V6
	default:
		n.Family = netlink.FAMILY_V4
	}
	if op == Delete {
		if err := h.nl.NeighDel(n); err != nil && !gone(err) {
			return err
		}
		return nil
	}
	return h.nl.NeighSet(n)
}
