package host

import (
	"context"
	"fmt"
	"net/netip"
)

// DeviceTo is the name of the device by which this machine reaches an address; an error when it does not.
func (h *Host) DeviceTo(ctx context.Context, addr netip.Addr) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	routes, err := h.nl.RouteGet(toIP(addr))
	if err != nil {
		return "", fmt.Errorf("find the way to %s: %w", addr, explain(err))
	}
	if len(routes) == 0 {
		return "", fmt.Errorf("find the way to %s: there is none", addr)
	}
	l, err := h.nl.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return "", fmt.Errorf("find the device to %s: %w", addr, err)
	}
	return l.Attrs().Name, nil
}
