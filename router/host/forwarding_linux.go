package host

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// clockTick is the unit in which the kernel tells people times (USER_HZ).
const clockTick = 10 * time.Millisecond

// Sent tells by MAC how long ago a device with a forwarding database sent something there: a packet, or the kernel's own
// answer to one. How much that was, the kernel does not know.
func (h *Host) Sent(ctx context.Context, link string) (map[string]time.Duration, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l, err := h.nl.LinkByName(link)
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", link, err)
	}
	entries, err := h.nl.NeighList(l.Attrs().Index, unix.AF_BRIDGE)
	if err != nil {
		return nil, fmt.Errorf("list the forwarding database of %s: %w", link, err)
	}
	out := make(map[string]time.Duration, len(entries))
	for _, e := range entries {
		out[e.HardwareAddr.String()] = time.Duration(e.Used) * clockTick
	}
	return out, nil
}
