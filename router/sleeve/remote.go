package sleeve

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/sparse"
)

// Limits of packets that wait for a session.
const (
	queuePackets = 32
	queueBytes   = 256 << 10
	queueLife    = 5 * time.Second
)

// remote is a peer as the packet paths see it: what they touch is atomic, the session is behind the lock.
type remote struct {
	id     peer.ID
	engine *Engine // nil: only direct paths can be used

	sending  atomic.Pointer[sending] // nil without a session
	drops    drops
	rx, tx   traffic
	carried  traffic      // for and by others
	quota    quota        // of what it has carried by us
	refused  atomic.Int64 // when it was last told that something was not carried
	carrier  atomic.Bool  // it can be asked to carry: there is a way to it that needs nobody else
	byStream atomic.Bool  // datagrams to it travel in a stream
	counted  counted

	mu     sync.Mutex // guards what follows
	link   link
	closed bool // no longer wanted; nothing may be published
	dial   dial
	queue  []queued
	queueN int // bytes
}

// sending is what sealing a packet needs. It is replaced, never changed.
type sending struct {
	keys *keys
	path path.Path
	from path.Path // where packets may come from without anybody having to know
	to   netip.AddrPort
	hop  *hop // nil: plain datagrams to the address

	halved bool // packets travel in two halves
}

// traffic counts inner packets of one direction.
type traffic struct {
	packets, bytes atomic.Uint64
	last           atomic.Int64 // when, on the engine's clock
}

func (t *traffic) count(packets, bytes int, at int64) {
	t.packets.Add(uint64(packets))
	t.bytes.Add(uint64(bytes))
	t.last.Store(at)
}

// queued is a packet as the TUN device gave it, or a control datagram.
type queued struct {
	v       vnet
	b       []byte
	at      int64
	control *remote // to whom it goes; nil: a packet
}

// publish makes the packet paths see the state of the link; the lock is held. It reports whether a session has just
// begun, so that waiting packets can go.
func (r *remote) publish() (began bool) {
	l := &r.link
	to := l.paths.Active()
	if r.closed || l.current == nil || to.IsZero() {
		r.sending.Store(nil)
		return false
	}
	old := r.sending.Load()
	halved := l.paths.Halved()
	if old != nil && old.keys == l.current && old.path == to && old.halved == halved && (old.hop == nil || r.engine.stands(old)) {
		if old.from != l.from {
			s := *old
			s.from = l.from
			r.sending.Store(&s)
		}
		return false
	}
	s := &sending{keys: l.current, path: to, from: l.from, to: to.Endpoint, halved: halved}
	if !to.Direct() {
		if s.hop = r.engine.hop(r.id, to); s.hop == nil {
			r.sending.Store(nil)
			return false
		}
	}
	r.sending.Store(s)
	return len(r.queue) > 0
}

// hold keeps a copy of a packet until there is a session. If there is one by now it returns that instead.
func (r *remote) hold(v vnet, b []byte, now int64) *sending {
	return r.keep(queued{v: v, b: b, at: now}, sparse.Data)
}

func (r *remote) keep(q queued, why sparse.Cause) *sending {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.sending.Load(); s != nil {
		return s
	}
	b := q.b
	if r.closed || len(b) > queueBytes {
		r.drops.add(dropNoSession, 1)
		return nil
	}
	r.engine.rouse(r.id, why)
	for len(r.queue) == queuePackets || r.queueN+len(b) > queueBytes {
		r.queueN -= len(r.queue[0].b)
		r.queue = slices.Delete(r.queue, 0, 1)
		r.drops.add(dropQueueFull, 1)
	}
	q.b = slices.Clone(b)
	r.queue = append(r.queue, q)
	r.queueN += len(b)
	return nil
}

// waiting takes the held packets away; the lock is held.
func (r *remote) waiting(now int64) []queued {
	r.expire(now)
	q := r.queue
	r.queue, r.queueN = nil, 0
	return q
}

// expire drops what has waited for too long; the lock is held.
func (r *remote) expire(now int64) {
	old := 0
	for old < len(r.queue) && now-r.queue[old].at > int64(queueLife) {
		r.queueN -= len(r.queue[old].b)
		old++
	}
	if old == 0 {
		return
	}
	r.drops.add(dropNoSession, old)
	if r.queue = slices.Delete(r.queue, 0, old); len(r.queue) == 0 {
		r.queue = nil
	}
}

// close ends the session at once.
func (r *remote) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.link.close()
	r.publish()
	r.drops.add(dropNoSession, len(r.queue))
	r.queue, r.queueN = nil, 0
}
