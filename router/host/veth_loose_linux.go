package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// plugLoose makes the pair of a pod whose namespace does not exist yet: its end, LooseName, waits here until whoever
// makes the namespace moves it there and gives it addresses and routes.
//
// Nothing can be told to the pod's neighbour table before that, so the pod must not need one. Both ends have the same
// MAC, and the pod's end is marked NOARP, a flag that outlives the move: its kernel then takes the device's own MAC for
// that of everybody, which is the host's end. There is no ARP and no neighbour discovery that could be slow or forged,
// and no duplicate address detection either. The gateway's address does not matter.
func (h *Host) plugLoose(ctx context.Context, v Veth) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, text := v.MACs()
	mac, err := net.ParseMAC(text)
	if err != nil {
		return fmt.Errorf("plug %s: %w", v.ID, err)
	}
	name := VethName(v.ID)
	// Whatever has the name is of an earlier try: nobody has been told of it, or its namespace is going.
	switch l, err := h.nl.LinkByName(name); {
	case err == nil:
		if err := h.nl.LinkDel(l); err != nil && !gone(err) {
			return fmt.Errorf("remove leftover %s: %w", name, explain(err))
		}
	case !gone(err):
		return fmt.Errorf("find %s: %w", name, err)
	}
	l := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: LooseName(v.ID), PeerHardwareAddr: mac, PeerMTU: uint32(v.MTU)}
	l.Name, l.HardwareAddr, l.MTU, l.GSOMaxSize = name, mac, v.MTU, MaxSuperPacket
	if err := h.nl.LinkAdd(l); err != nil {
		return fmt.Errorf("make veth pair: %w", explain(err))
	}
	if err := h.setUpLoose(v, mac); err != nil {
		if l, ferr := h.nl.LinkByName(name); ferr == nil {
			_ = h.nl.LinkDel(l)
		}
		return fmt.Errorf("plug %s: %w", v.ID, explain(err))
	}
	return nil
}

func (h *Host) setUpLoose(v Veth, mac net.HardwareAddr) error {
	name, loose := VethName(v.ID), LooseName(v.ID)
	onHost, err := h.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	inPod, err := h.nl.LinkByName(loose)
	if err != nil {
		return fmt.Errorf("find %s: %w", loose, err)
	}
	for _, l := range []netlink.Link{onHost, inPod} {
		if l.Attrs().GSOMaxSize <= MaxSuperPacket {
			continue
		}
		if err := h.nl.LinkSetGSOMaxSize(l, MaxSuperPacket); err != nil {
			return fmt.Errorf("limit super-packets of %s: %w", l.Attrs().Name, err)
		}
	}
	if err := h.nl.LinkSetARPOff(inPod); err != nil {
		return fmt.Errorf("turn off ARP of %s: %w", loose, err)
	}
	if h.kernelIPv6() {
		if err := h.nl.LinkSetIP6AddrGenMode(onHost, nl6AddrGenNone); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("keep %s from inventing an address: %w", name, err)
		}
	}
	want6, host6 := v.V6.IsValid(), "net/ipv6/conf/"+name+"/"
	v6 := []Sysctl{{host6 + "accept_ra", "0"}}
	if want6 {
		v6 = append(v6, Sysctl{host6 + "disable_ipv6", "0"}, Sysctl{host6 + "forwarding", "1"})
	}
	filter := "1"
	if v.Siblings {
		filter = "0" // not 2, which on a device without addresses is as strict as 1
	}
	if err := setSysctls(h.ns, want6, []Sysctl{{"net/ipv4/conf/" + name + "/rp_filter", filter}}, v6); err != nil {
		return err
	}
	if err := h.nl.LinkSetUp(onHost); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	// That the carrier goes and comes with the move leaves permanent neighbours alone.
	for _, f := range []struct{ addr, source netip.Addr }{{v.V4, v.Source4}, {v.V6, v.Source6}} {
		if !f.addr.IsValid() {
			continue
		}
		if err := neighbour(h.nl, onHost, f.addr, mac); err != nil {
			return fmt.Errorf("tell the host of %s: %w", f.addr, err)
		}
		route := Route{Dst: netip.PrefixFrom(f.addr, f.addr.BitLen()), Link: name, Src: f.source}
		if err := h.changeRoute(Set, &route, map[string]int{name: onHost.Attrs().Index}); err != nil {
			return fmt.Errorf("route %s: %w", f.addr, err)
		}
	}
	return nil
}
