package sleeve

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"weft/crypto/noise"
)

// Limits of handshakes, so that garbage costs little.
const (
	handshakeQueue = 256
	handshakeLoad  = handshakeQueue / 8 // waiting messages from which on senders must prove their address

	sourceRate  = 20   // handshakes a second from one /24 or /56
	sourceBurst = 40   // at once
	sourceTable = 1024 // sources that are remembered
)

// knock is a handshake message that arrived.
type knock struct {
	b    []byte
	from netip.AddrPort
}

// handshakes takes handshake messages from the receive workers, who must not spend 200 µs on one.
type handshakes struct {
	e     *Engine
	queue chan knock
}

// offer copies b and queues it, if whoever sent it knows our public key.
func (h *handshakes) offer(b []byte, from netip.AddrPort) {
	n := h.e.node.Load()
	if n == nil {
		h.e.drops.add(dropStranger, 1)
		return
	}
	if noise.Type(b) != noise.TypeCookie && n.local.Key.Check(b) != nil {
		h.e.drops.add(dropMAC, 1)
		return
	}
	select {
	case h.queue <- knock{slices.Clone(b), from}:
	default:
		h.e.drops.add(dropRate, 1)
	}
}

// run answers until ctx ends.
func (h *handshakes) run(ctx context.Context) {
	var cookies noise.Cookies
	sources := limiter{}
	for {
		select {
		case <-ctx.Done():
			return
		case k := <-h.queue:
			h.one(k, &cookies, &sources, time.Now())
		}
	}
}

func (h *handshakes) one(k knock, cookies *noise.Cookies, sources *limiter, now time.Time) {
	e := h.e
	n := e.node.Load()
	if n == nil {
		return
	}
	switch noise.Type(k.b) {
	case noise.TypeInitiation:
		if len(h.queue) >= handshakeLoad && !cookies.Valid(k.b, k.from, now) {
			e.drops.add(dropCookie, 1)
			e.send(message{k.from, cookies.Reply(n.local.Key, k.b, k.from, now)})
			return
		}
		if !sources.allow(k.from.Addr(), now) {
			e.drops.add(dropRate, 1)
			return
		}
		h.initiation(n, k, now)
	case noise.TypeResponse, noise.TypeCookie:
		h.reply(k, now)
	}
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
	e.send(message{k.from, msg})
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
	e.release(r, waiting)
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

func (l *limiter) allow(a netip.Addr, now time.Time) bool {
	bits := 24
	if a.Is6() {
		bits = 56
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
