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
	"weft/mesh/sparse"
)

// Limits of handshakes, so that garbage costs little.
const (
	handshakeQueue = 256
	provenQueue    = 64
	handshakeLoad  = handshakeQueue / 8 // waiting messages from which on senders must prove their address
)

// knock is a handshake message that arrived, and what it is worth.
type knock struct {
	b     []byte
	from  path.Path
	worth worth
}

// handshakes takes handshake messages from the receive workers, who must not spend 200 µs on one. What is beyond the limits
// is dropped by the workers, before it costs a copy or the wake-up of a goroutine, and where it can be before the hash too.
// Those that answer us or prove their sender's address do not wait behind the others: a flood costs its victims the others
// only.
type handshakes struct {
	e      *Engine
	queue  chan knock
	proven chan knock

	familiar atomic.Pointer[familiar] // nil until the first look
	sieve    sieve

	mu      sync.Mutex // guards what follows
	cookies noise.Cookies
	limits  *limits
	repeats repeats
}

// offer copies b and queues it, if it may cost so much.
func (h *handshakes) offer(b []byte, from path.Path, now time.Time) {
	n := h.e.node.Load()
	if n == nil {
		h.e.drops.add(dropStranger, 1)
		return
	}
	var w worth
	why := reasons
	if noise.Type(b) == noise.TypeInitiation {
		w, why = h.weigh(n, b, from, now)
	} else if w = worthAnswer; !h.awaited(b) {
		why = dropUnknownIndex
	} else if noise.Type(b) == noise.TypeResponse && n.local.Key.Check(b) != nil {
		why = dropMAC
	}
	if why != reasons {
		h.e.drops.add(why, 1)
		if w == worthAnswer {
			h.saw(b, from)
		}
		return
	}
	queue := h.queue
	if w.first() {
		queue = h.proven
	}
	select {
	case queue <- knock{slices.Clone(b), from, w}:
	default:
		h.e.drops.add(dropRate, 1)
	}
}

// awaited reports whether a message answers a handshake that is under way.
func (h *handshakes) awaited(b []byte) bool {
	entry, ok := h.e.indexes.find(noise.Index(b))
	return ok && entry.keys == nil
}

// weigh decides what an initiation is worth; the reason is reasons when it is worth anything.
func (h *handshakes) weigh(n *node, b []byte, from path.Path, now time.Time) (worth, reason) {
	known := from.Direct() && h.knows(from.Endpoint.Addr())
	bare := noise.Bare(b)
	if from.Direct() && !known {
		h.sieve.saw(b)
	}
	if from.Direct() {
		if why := h.worthless(b, bare, known, now); why != reasons {
			return worthNothing, why
		}
	}
	if n.local.Key.Check(b) != nil {
		return worthNothing, dropMAC
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	proven := !from.Direct() || !bare && h.limits.proofs.take(now) && h.cookies.Valid(b, from.Endpoint, now)
	w := h.limits.admit(source(from), proven, known, len(h.queue) >= handshakeLoad, now)
	if w == worthNothing {
		return w, dropRate
	}
	return w, reasons
}

// worthless tells, before anything is computed, why an initiation gets nothing; reasons if it may get something.
func (h *handshakes) worthless(b []byte, bare, known bool, now time.Time) reason {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !known && h.repeats.again(b):
		return dropOldCounter
	case bare && h.limits.spent(known, now):
		return dropRate // whoever it is from: all that is given is given
	}
	return reasons
}

// source is whom a handshake is charged to: a relay answers for those whom it carries for.
func source(from path.Path) netip.Addr {
	if from.Relayed() {
		return netip.AddrFrom16(from.Via[0])
	}
	return from.Endpoint.Addr()
}

// run answers until ctx ends.
func (h *handshakes) run(ctx context.Context) {
	calm := time.NewTicker(sievePeriod) // only for as long as something is held back
	calm.Stop()
	defer calm.Stop()
	for {
		now := time.Now()
		h.refresh(now)
		if was := h.sieve.on(); h.sift(now) {
			switch on := h.sieve.on(); {
			case on && !was:
				calm.Reset(sievePeriod)
			case was && !on:
				calm.Stop()
			}
		}
		var k knock
		select {
		case k = <-h.proven:
		default:
			select {
			case <-ctx.Done():
				return
			case <-calm.C:
				continue
			case <-h.sieve.rung:
				continue
			case k = <-h.proven:
			case k = <-h.queue:
			}
		}
		h.one(k, time.Now())
	}
}

func (h *handshakes) one(k knock, now time.Time) {
	e := h.e
	n := e.node.Load()
	switch {
	case n == nil:
	case k.worth == worthAnswer:
		h.reply(k, now)
	case k.worth == worthCookie || k.worth == worthCookieFirst:
		e.drops.add(dropCookie, 1)
		h.mu.Lock()
		b := h.cookies.Reply(n.local.Key, k.b, k.from.Endpoint, now)
		h.mu.Unlock()
		e.dispatch(peer.ID{}, k.from, b)
	default:
		h.initiation(n, k, now)
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
		if err == nil {
			e.rouse(r.id, sparse.Control)
		}
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
