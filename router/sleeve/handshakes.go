package sleeve

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/crypto/noise"
	"weft/mesh/path"
	"weft/mesh/peer"
)

// Limits of handshakes, so that garbage costs little.
const (
	handshakeQueue = 256
	provenQueue    = 64
	handshakeLoad  = handshakeQueue / 8 // waiting messages from which on senders must prove their address

	sourceRate  = 20   // handshakes a second from one network (/24, /56), or one proven address (/32, /64)
	sourceBurst = 40   // at once
	sourceTable = 1024 // sources that are remembered
)

// knock is a handshake message that arrived.
type knock struct {
	b      []byte
	from   path.Path
	proven bool // its sender receives at from, or we asked for it
	known  bool // it comes from where a peer is, as far as anybody can tell: it does not wait behind strangers
}

// handshakes takes handshake messages from the receive workers, who must not spend 200 µs on one. Those that answer us or
// prove their sender's address do not wait behind the others: a flood costs its victims the others only.
type handshakes struct {
	e      *Engine
	queue  chan knock
	proven chan knock

	familiar atomic.Pointer[familiar] // nil until the first look

	mu      sync.Mutex
	cookies noise.Cookies
}

// offer copies b and queues it, if whoever sent it knows our public key.
func (h *handshakes) offer(b []byte, from path.Path, now time.Time) {
	n := h.e.node.Load()
	if n == nil {
		h.e.drops.add(dropStranger, 1)
		return
	}
	k := knock{from: from}
	switch noise.Type(b) {
	case noise.TypeCookie:
		k.proven = true
	default:
		if n.local.Key.Check(b) != nil {
			h.e.drops.add(dropMAC, 1)
			return
		}
		k.proven = noise.Type(b) == noise.TypeResponse || !from.Direct() || len(h.queue) >= handshakeLoad && h.valid(b, from.Endpoint, now)
	}
	k.known = !k.proven && from.Direct() && h.knows(from.Endpoint.Addr())
	queue := h.queue
	if k.known {
		queue = h.proven
	}
	if k.proven {
		if queue = h.proven; noise.Type(b) != noise.TypeInitiation {
			if entry, ok := h.e.indexes.find(noise.Index(b)); !ok || entry.keys != nil {
				h.e.drops.add(dropUnknownIndex, 1)
				return
			}
		}
	}
	k.b = slices.Clone(b)
	select {
	case queue <- k:
	default:
		h.e.drops.add(dropRate, 1)
	}
}

func (h *handshakes) valid(b []byte, from netip.AddrPort, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cookies.Valid(b, from, now)
}

// run answers until ctx ends.
func (h *handshakes) run(ctx context.Context) {
	l := newLimits()
	for {
		h.refresh(time.Now())
		var k knock
		select {
		case k = <-h.proven:
		default:
			select {
			case <-ctx.Done():
				return
			case k = <-h.proven:
			case k = <-h.queue:
			}
		}
		h.one(k, l, time.Now())
	}
}

func (h *handshakes) one(k knock, l *limits, now time.Time) {
	e := h.e
	n := e.node.Load()
	if n == nil {
		return
	}
	if noise.Type(k.b) != noise.TypeInitiation {
		h.reply(k, now)
		return
	}
	if !k.proven && (len(h.queue) >= handshakeLoad || !k.known && !l.handshakes.take(now)) {
		if k.known && !l.known.take(now) || !k.known && !l.cookies.take(now) {
			e.drops.add(dropRate, 1)
			return
		}
		e.drops.add(dropCookie, 1)
		h.mu.Lock()
		b := h.cookies.Reply(n.local.Key, k.b, k.from.Endpoint, now)
		h.mu.Unlock()
		e.dispatch(peer.ID{}, k.from, b)
		return
	}
	// A proven address has a bucket of its own, which its neighbours cannot empty.
	addr := k.from.Endpoint.Addr()
	if k.from.Relayed() { // the relay answers for those whom it carries for
		addr = netip.AddrFrom16(k.from.Via[0])
	}
	allowed := k.proven && l.byAddress.allow(addr, 32, 64, now) || !k.proven && l.byNetwork.allow(addr, 24, 56, now)
	if !allowed {
		e.drops.add(dropRate, 1)
		return
	}
	h.initiation(n, k, now)
}

// initiation answers message 1 of a known peer.
func (h *handshakes) initiation(n *node, k knock, now time.Time) {
	e := h.e
	var r *remote
	var answer noise.Answer
	msg, secret, err := noise.Respond(n.local, k.b, func(key [noise.KeySize]byte, o noise.Offer) (noise.Answer, [32]byte, error) {
		if r = e.byKey(key); r == nil {
			return noise.Answer{}, [32]byte{}, errStranger
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.closed {
			return noise.Answer{}, [32]byte{}, errStranger
		}
		a, s, err := r.link.accept(o, now)
		answer = a
		return a, s, err
	})
	if err != nil {
		if answer.Index != 0 {
			e.indexes.release(answer.Index)
		}
		e.refused(r, err)
		return
	}
	r.mu.Lock()
	if r.closed {
		e.indexes.release(answer.Index)
		r.mu.Unlock()
		return
	}
	r.link.responded(secret, answer, noise.Index(k.b), now)
	r.mu.Unlock()
	e.send(r, message{k.from, msg})
	e.wake()
}

// reply takes message 2 or a cookie in.
func (h *handshakes) reply(k knock, now time.Time) {
	e := h.e
	entry, ok := e.indexes.find(noise.Index(k.b))
	if !ok || entry.keys != nil {
		e.drops.add(dropUnknownIndex, 1)
		return
	}
	r := entry.remote
	r.mu.Lock()
	var err error
	if noise.Type(k.b) == noise.TypeCookie {
		err = r.link.cookie(k.b, now)
	} else {
		err = r.link.response(k.b, k.from, now)
	}
	waiting := e.publish(r, now)
	r.mu.Unlock()
	if err != nil {
		e.refused(r, err)
		return
	}
	e.release(waiting)
	e.wake()
}

// refused counts a handshake that came to nothing; r is nil when it is not known whose it was.
func (e *Engine) refused(r *remote, err error) {
	d := &e.drops
	if r != nil {
		d = &r.drops
	}
	switch {
	case errors.Is(err, errStranger):
		d.add(dropStranger, 1)
	case errors.Is(err, errOldCounter):
		d.add(dropOldCounter, 1)
	case errors.Is(err, errRate):
		d.add(dropRate, 1)
	case errors.Is(err, noise.ErrPSK):
		d.add(dropNoSecret, 1)
	default:
		d.add(dropHandshake, 1)
	}
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
