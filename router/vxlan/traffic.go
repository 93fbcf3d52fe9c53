package vxlan

import (
	"context"
	"time"

	"weft/router/pulse"
)

const (
	// ownEcho is how long after an echo what the device sent may still be that one.
	ownEcho = 50 * time.Millisecond
	// justNow is how long ago the last packet of a flow was, at most.
	justNow = 100 * time.Millisecond
	// flowGap is how long a flow may pause, as one does whose packets are swallowed.
	flowGap = 1500 * time.Millisecond
)

// traffic tells what each tunnel carries. The device counts bytes for all peers together, and the kernel knows of each
// only when it last sent something there, an answer to an echo or a packet of a flow. So a tunnel is taken for busy when
// the device is, and something went to that peer a moment ago; and for perhaps busy when it was since our last echo.
func (t *transport) traffic(ctx context.Context, now time.Time, bytes uint64) (func(*tunnel) pulse.Traffic, error) {
	var spent uint64
	for _, u := range t.tunnels {
		spent += u.pulse.Spent()
	}
	all := t.meter.Read(now, bytes, spent)
	if all == pulse.Quiet || len(t.tunnels) == 1 {
		return func(*tunnel) pulse.Traffic { return all }, nil
	}
	sent, err := t.host.Sent(ctx, t.device)
	if err != nil {
		return nil, err
	}
	return func(u *tunnel) pulse.Traffic {
		ago, known := sent[MAC(u.Peer).String()]
		at := now.Add(-ago)
		if !known || at.Before(u.asked.Add(ownEcho)) {
			return pulse.Quiet
		}
		if all == pulse.Flows && ago < justNow {
			u.flows = now
		}
		if now.Sub(u.flows) < flowGap {
			return pulse.Flows
		}
		return pulse.Perhaps
	}, nil
}
