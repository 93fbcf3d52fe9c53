package netlab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// VXLAN describes a tunnel made by hand: what a comparison with a program that makes its own is held against.
type VXLAN struct {
	Name          string
	ID, Port      int
	Local, Remote netip.Addr
	MTU           int
	Addr          string // of the device, such as "172.20.0.1/24"
}

// VXLAN adds the device, up. Nothing is learnt: there is one other end.
func (h *Host) VXLAN(v VXLAN) {
	p := h.Port(v.Name, v.Addr)
	h.lab.must(h.addVXLAN(v, p), "add %s on %s", v.Name, h.name)
}

func (h *Host) addVXLAN(v VXLAN, p Port) error {
	err := h.nl.LinkAdd(&netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: v.Name, MTU: v.MTU},
		VxlanId:   v.ID, Port: v.Port, SrcAddr: v.Local.AsSlice(), Group: v.Remote.AsSlice(),
	})
	if err != nil {
		return fmt.Errorf("add device: %w", err)
	}
	return p.configure()
}

// WireGuard adds a device of the kernel's WireGuard to h, without keys or peers.
func (h *Host) WireGuard(name string, mtu int, addr string) {
	p := h.Port(name, addr)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	h.lab.must(func() error {
		if err := h.nl.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("add device: %w", err)
		}
		return p.configure()
	}(), "add %s on %s", name, h.name)
}

// DeviceUp starts a device that a process on h has made.
func (h *Host) DeviceUp(name string) { h.lab.must(h.linkUp(name), "start %s on %s", name, h.name) }

// RouteDevice sends what goes to dst into a device that has no neighbours, such as a TUN.
func (h *Host) RouteDevice(dst netip.Prefix, device string) {
	p := Port{Host: h, Name: device}
	h.lab.must(p.set(func(nl *netlink.Handle, dev netlink.Link) error {
		return nl.RouteReplace(&netlink.Route{Dst: ipNet(dst.Masked()), LinkIndex: dev.Attrs().Index, Scope: netlink.SCOPE_LINK})
	}), "route %v into %s on %s", dst, device, h.name)
}

// SetCoalescing says whether both ends join the packets that they receive (GRO), as network cards' drivers do and veths do
// only when told.
func (k *Link) SetCoalescing(on bool) {
	for _, p := range k.ports() {
		k.lab.must(p.setFeatures(on, func(name string) bool { return name == "rx-gro" }), "set coalescing of %v", k)
	}
}
