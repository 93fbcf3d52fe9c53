package host

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
)

// KindWireGuard is the kind of a kernel WireGuard device.
const KindWireGuard = "wireguard"

// ProbeWireGuard makes a WireGuard device.
func ProbeWireGuard(ctx context.Context) error {
	return probe(ctx, "WireGuard devices", "Try: modprobe wireguard; Linux has it since 5.6", func() error {
		return netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "weft-p0"}})
	})
}

// addWireGuard makes a device without keys and peers. Its UDP socket belongs to this namespace whatever becomes of the
// device.
func (h *Host) addWireGuard(want *Link) (netlink.Link, error) {
	l := &netlink.Wireguard{LinkAttrs: netlink.NewLinkAttrs()}
	l.Name, l.MTU = want.Name, want.MTU
	if err := h.nl.LinkAdd(l); err != nil {
		return nil, fmt.Errorf("make device: %w", err)
	}
	return h.nl.LinkByName(want.Name)
}
