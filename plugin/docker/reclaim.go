package docker

import (
	"context"
	"strings"
	"time"
)

const (
	reclaimAfter = 10 * time.Minute // what nobody has asked after for so long is given up
	reclaimEvery = 30 * time.Second
)

// reclaim gives back what Docker forgot: dockerd was killed between two calls, or its containers went while weft was not
// there to be told. An endpoint without a cable, and a claim without an endpoint, go after a while. A restart begins the
// wait anew.
func (p *Plugin) reclaim(ctx context.Context) {
	tick := time.NewTicker(reclaimEvery)
	defer tick.Stop()
	since := map[string]time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			one, cancel := context.WithTimeout(ctx, callTime)
			since = p.reclaimOnce(one, since, time.Now())
			cancel()
		}
	}
}

// reclaimOnce returns since when each lease that may be lost has been seen so.
func (p *Plugin) reclaimOnce(ctx context.Context, since map[string]time.Time, now time.Time) map[string]time.Time {
	leases, err := p.node.Leases(ctx)
	if err != nil {
		return since
	}
	lost := map[string]time.Time{}
	for _, l := range leases {
		if !strings.HasPrefix(l.Name, leasePrefix) {
			continue
		}
		if there, err := p.node.Connected(ctx, l.Name); err != nil || there {
			continue // doubt is presence
		}
		first, known := since[l.Name]
		if !known {
			first = now
		}
		if now.Sub(first) < reclaimAfter {
			lost[l.Name] = first
			continue
		}
		if err := p.drop(ctx, l.Name); err != nil {
			lost[l.Name] = first
			p.log.Warn("address that docker forgot not released, will try again", "container", l.Name, "err", err)
			continue
		}
		p.log.Info("released an address that docker forgot", "container", l.Name, "address", l.V4)
	}
	return lost
}
