package sleeve

import (
	"net/netip"
	"time"
)

// What strangers may cost in all, however many addresses they send from: at most a few percent of a core.
const (
	strangerHandshakes = 200  // a second, of those who have not proven their address: 200 µs each
	strangerCookies    = 2000 // a second, for those who must: 10 µs each
	strangerBurst      = 64   // of either, at once

	familiarFor = time.Second // that a list of familiar addresses is good enough
)

// limits are what handshakes are held to.
type limits struct {
	byNetwork, byAddress limiter
	handshakes, cookies  *budget // of strangers in all
	known                *budget // cookies of those who come, or seem to come, from where a peer is
}

func newLimits() *limits {
	return &limits{
		byNetwork: limiter{}, byAddress: limiter{},
		handshakes: newBudget(strangerHandshakes), cookies: newBudget(strangerCookies), known: newBudget(strangerCookies),
	}
}

// budget is a token bucket.
type budget struct {
	rate   float64
	tokens float64
	at     time.Time
}

func newBudget(rate float64) *budget { return &budget{rate: rate, tokens: strangerBurst} }

func (b *budget) take(now time.Time) bool {
	if !b.at.IsZero() {
		b.tokens = min(strangerBurst, b.tokens+now.Sub(b.at).Seconds()*b.rate)
	}
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// familiar are the addresses that sessions are with: a flood from everywhere must not keep a peer from its next key. It is
// replaced, never changed.
type familiar struct {
	addrs map[netip.Addr]struct{}
	made  time.Time
}

// refresh lists them anew once a second. It is called from one goroutine; others may read what it has published.
func (h *handshakes) refresh(now time.Time) {
	if f := h.familiar.Load(); f != nil && now.Sub(f.made) < familiarFor {
		return
	}
	f := &familiar{addrs: map[netip.Addr]struct{}{}, made: now}
	h.e.mu.RLock()
	for _, r := range h.e.peers {
		if s := r.sending.Load(); s != nil && s.to.IsValid() {
			f.addrs[s.to.Addr()] = struct{}{}
		}
	}
	h.e.mu.RUnlock()
	h.familiar.Store(f)
}

func (h *handshakes) knows(a netip.Addr) bool {
	f := h.familiar.Load()
	if f == nil {
		return false
	}
	_, ok := f.addrs[a]
	return ok
}
