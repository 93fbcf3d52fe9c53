package sleeve

import (
	"net/netip"
	"slices"
	"time"

	"weft/mesh/path"
)

// What strangers may cost in all, however many addresses they send from: at most a few percent of a core.
const (
	strangerHandshakes = 50     // a second, of those who have not proven their address: 200 µs each
	knownHandshakes    = 200    // a second, of those who seem to come from where peers are
	strangerCookies    = 2000   // a second, for those who must: 10 µs each
	strangerProofs     = 20_000 // a second, that are looked at: 2 µs each
	strangerBurst      = 64     // of any, at once

	familiarFor = time.Second // that a list of familiar addresses is good enough
)

// What one source may cost.
const (
	sourceRate  = 20   // handshakes a second from one network (/24, /56), or one proven address (/32, /64)
	sourceBurst = 40   // at once
	sourceTable = 1024 // sources that are remembered
)

// worth is what a handshake message is given. What comes from where a peer is does not wait behind strangers, nor is it paid
// out of their budgets.
type worth uint8

const (
	worthNothing     worth = iota
	worthCookie            // its sender must prove its address
	worthAll               // a stranger's, while there is room
	worthCookieFirst       // as worthCookie, to where a peer is
	worthAllFirst          // of where a peer is, or of one who receives where it claims to be
	worthAnswer            // it is what we have asked for
)

// first reports whether it does not wait behind strangers.
func (w worth) first() bool { return w >= worthCookieFirst }

// limits are what initiations are held to.
type limits struct {
	byNetwork, byAddress limiter
	handshakes, cookies  *budget // of strangers in all
	familiar, known      *budget // handshakes and cookies of those who come, or seem to come, from where a peer is
	proofs               *budget // looks at cookies
}

func newLimits() *limits {
	return &limits{
		byNetwork: limiter{}, byAddress: limiter{},
		handshakes: newBudget(strangerHandshakes), cookies: newBudget(strangerCookies),
		familiar: newBudget(knownHandshakes), known: newBudget(strangerCookies),
		proofs: newBudget(strangerProofs),
	}
}

// spent reports whether an initiation that proves nothing would get nothing.
func (l *limits) spent(known bool, now time.Time) bool {
	return !known && !l.handshakes.has(now) && !l.cookies.has(now)
}

// admit decides about an initiation and takes what it costs. loaded says that many are waiting. A proven address has a
// bucket of its own, which neither its neighbours nor those who claim to be there can empty.
func (l *limits) admit(from netip.Addr, proven, known, loaded bool, now time.Time) worth {
	switch {
	case proven && l.byAddress.allow(from, 32, 64, now):
		return worthAllFirst
	case proven:
		return worthNothing
	case known && !loaded && l.byNetwork.allow(from, 24, 56, now) && l.familiar.take(now):
		return worthAllFirst
	case known && l.known.take(now):
		return worthCookieFirst
	case known:
		return worthNothing
	case !loaded && l.handshakes.take(now) && l.byNetwork.allow(from, 24, 56, now):
		return worthAll
	case l.cookies.take(now):
		return worthCookie
	}
	return worthNothing
}

// budget is a token bucket.
type budget struct {
	rate   float64
	tokens float64
	at     time.Time
}

func newBudget(rate float64) *budget { return &budget{rate: rate, tokens: strangerBurst} }

// has reports whether something is left.
func (b *budget) has(now time.Time) bool {
	if !b.at.IsZero() {
		b.tokens = min(strangerBurst, b.tokens+now.Sub(b.at).Seconds()*b.rate)
	}
	b.at = now
	return b.tokens >= 1
}

func (b *budget) take(now time.Time) bool {
	if !b.has(now) {
		return false
	}
	b.tokens--
	return true
}

// familiar are the addresses that peers are at, or are said to be at: a flood from everywhere must not keep a peer from its
// next key, nor from its first. It is replaced, never changed.
type familiar struct {
	addrs  map[netip.Addr]struct{}
	listed []netip.Addr // of them, for the filter
	made   time.Time
}

// refresh lists them anew once a second. It is called from one goroutine; others may read what it has published.
func (h *handshakes) refresh(now time.Time) {
	if f := h.familiar.Load(); f != nil && now.Sub(f.made) < familiarFor {
		return
	}
	var sessions, candidates []netip.Addr
	h.e.mu.RLock()
	for _, r := range h.e.peers {
		if s := r.sending.Load(); s != nil {
			for _, a := range []netip.AddrPort{s.to, s.from.Endpoint} {
				if a.IsValid() {
					sessions = append(sessions, a.Addr())
				}
			}
		}
		r.mu.Lock()
		for _, a := range r.link.peer.Endpoints {
			candidates = append(candidates, a.Addr())
		}
		r.mu.Unlock()
	}
	h.e.mu.RUnlock()
	f := &familiar{addrs: make(map[netip.Addr]struct{}, len(sessions)+len(candidates)), made: now}
	for _, a := range slices.Concat(sessions, candidates) {
		f.addrs[a] = struct{}{}
	}
	f.listed = listed(sessions, candidates)
	h.familiar.Store(f)
}

// saw tells the sieve of a datagram that came to nothing, if it is from where no peer is.
func (h *handshakes) saw(b []byte, from path.Path) {
	if from.Direct() && !h.knows(from.Endpoint.Addr()) {
		h.sieve.saw(b)
	}
}

func (h *handshakes) knows(a netip.Addr) bool {
	f := h.familiar.Load()
	if f == nil {
		return false
	}
	_, ok := f.addrs[a]
	return ok
}

// limiter is a token bucket for each source network. When the table is full it starts anew: an attacker with that many
// networks is met by cookies.
type limiter map[netip.Prefix]*bucket

type bucket struct {
	tokens float64
	at     time.Time
}

func (l *limiter) allow(a netip.Addr, bits4, bits6 int, now time.Time) bool {
	bits := bits4
	if a.Is6() {
		bits = bits6
	}
	p, _ := a.Prefix(bits)
	b := (*l)[p]
	if b == nil {
		if len(*l) >= sourceTable {
			clear(*l)
		}
		b = &bucket{tokens: sourceBurst, at: now}
		(*l)[p] = b
	}
	b.tokens = min(sourceBurst, b.tokens+now.Sub(b.at).Seconds()*sourceRate)
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
