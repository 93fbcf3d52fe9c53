package weftd

import (
	"context"
	"strings"

	"weft/ipam"
	"weft/router"
)

// An address that was lent belongs to an interface that another plugin makes, after it has been told the address, and of
// which weft hears nothing. Which device leads to it is what the machine's routes say; while none does, the pod is connected
// to nothing of weft's.

// lentPrefix marks the network of a claim that was lent; the names of networks have no colon.
const lentPrefix = "ipam:"

func lent(c ipam.Claim) bool { return strings.HasPrefix(c.Network, lentPrefix) }

// findLent names the devices of pods whose addresses were lent.
func (n *node) findLent(ctx context.Context, pods []router.Pod) {
	for _, c := range n.ring.Claims() {
		if !lent(c) {
			continue
		}
		for i, p := range pods {
			if p.Name != c.Container || p.IfName != c.IfName || !p.V4.IsValid() && !p.V6.IsValid() {
				continue
			}
			// An error means that the plugin is not that far, or never will be: then there is nothing to let through.
			if device, err := n.host.DeviceTo(ctx, c.Addr()); err == nil {
				pods[i].Device = device
			}
		}
	}
}
