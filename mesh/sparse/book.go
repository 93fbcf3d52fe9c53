// Package sparse decides which members of a large cluster are worth a session. Up to Everybody members each has one with
// each: the first packet finds it open. Beyond, see Wanted, sessions are opened by traffic and closed when it has ended,
// since what a session costs while nothing flows (probes of its paths, keepalives through NAT) is paid for every peer and
// every second.
//
// The package is a pure machine: time comes in, wishes go out. What a session is, and that a peer without one still has
// its keys, addresses and secrets ready, is the wire's business; who is a member, the daemon's.
package sparse

import (
	"cmp"
	"slices"
	"time"

	"weft/mesh/peer"
)

// Limits.
const (
	Everybody = 500 // members with whom all sessions are open
	Slack     = 5   // a fifth less, and all are opened again; between the two numbers nothing changes

	IdleData    = 10 * time.Minute // a session that carried packets of pods closes after this time without one
	IdleControl = time.Minute      // one that carried gossip only

	// MostAwake bounds the sessions that traffic holds open: a pod that scans a whole pool opens no more. The one that
	// was idle for the longest time gives way.
	MostAwake = 2048
)

// Cause is why a session is wanted.
type Cause uint8

// Causes, the stronger ones last.
const (
	Control Cause = iota // a datagram of the mesh or a handshake, in either direction
	Data                 // a packet of a pod, in either direction
)

// Wanted says whether a cluster of so many members, this node included, is to be sparse, as it was or was not before:
// above a number, 0 for Everybody, until it has shrunk by a fifth.
func Wanted(above, members int, was bool) bool {
	if above == 0 {
		above = Everybody
	}
	return members > above || was && members >= above-above/Slack
}

// Book knows every peer and who of them has a session.
//
//	           Touch                          idle for IdleData or IdleControl
//	asleep ------------> awake (by traffic) ------------------------------------> asleep
//	   |                    |      ^  Touch again: idle from now
//	   |                    |      |
//	   |  Pin               |      | Pin without it
//	   +--------> pinned <--+------+
//
// Until Set says so everyone is awake, and nothing is idle. The Book is used by one goroutine.
type Book struct {
	data, control time.Duration // a session may be idle

	members peer.Set
	pinned  peer.Set
	awake   map[peer.ID]use
	sparse  bool
}

// use is the last of each traffic.
type use struct{ control, data time.Time }

// idle is when the session closes unless it is used again.
func (b *Book) idle(u use) time.Time {
	if u.data.IsZero() {
		return u.control.Add(b.control)
	}
	return later(u.data.Add(b.data), u.control.Add(b.control))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// New makes an empty book. Sessions that carried packets close after idle, 0 for IdleData; those that carried gossip only
// after IdleControl, if that is less.
func New(idle time.Duration) *Book {
	b := &Book{members: peer.Set{}, pinned: peer.Set{}, awake: map[peer.ID]use{}}
	b.Idle(idle)
	return b
}

// Idle changes how long a session that carried packets stays open after the last one.
func (b *Book) Idle(d time.Duration) {
	if d <= 0 {
		d = IdleData
	}
	b.data, b.control = d, min(d, IdleControl)
}

// Set says whether sessions are opened by traffic from now on. Those that were open until now count as used now: they
// close as they turn out not to be needed.
func (b *Book) Set(sparse bool, now time.Time) {
	if sparse == b.sparse {
		return
	}
	b.sparse = sparse
	clear(b.awake)
	if !sparse {
		return
	}
	for id := range b.members {
		b.awake[id] = use{control: now}
	}
	b.bound()
}

// Members says who there is, this node not among them. Nobody has a session with one that is new to a sparse book.
func (b *Book) Members(ids []peer.ID) {
	b.members = peer.SetOf(ids...)
	for id := range b.awake {
		if !b.members.Has(id) {
			delete(b.awake, id)
		}
	}
}

// Pin says whose sessions stay open whatever the traffic: relays that this node is at home at, and those that are at
// home here. It replaces what was said before; one that is pinned no more counts as used now.
func (b *Book) Pin(ids []peer.ID, now time.Time) {
	old := b.pinned
	b.pinned = peer.SetOf(ids...)
	for id := range old {
		if !b.pinned.Has(id) {
			b.Touch(id, Control, now)
		}
	}
}

// Touch notes traffic. It reports whether this opens the session.
func (b *Book) Touch(id peer.ID, c Cause, now time.Time) (opened bool) {
	if !b.sparse || !b.members.Has(id) {
		return false
	}
	u, awake := b.awake[id]
	if c == Data {
		u.data = later(u.data, now)
	} else {
		u.control = later(u.control, now)
	}
	opened = !awake && !b.pinned.Has(id)
	b.awake[id] = u
	b.bound()
	return opened && b.Open(id)
}

// Sleep closes what has been idle for too long, and tells who that is, in ascending order.
func (b *Book) Sleep(now time.Time) (closed []peer.ID) {
	for id, u := range b.awake {
		if now.Before(b.idle(u)) {
			continue
		}
		delete(b.awake, id)
		if !b.pinned.Has(id) {
			closed = append(closed, id)
		}
	}
	slices.SortFunc(closed, peer.ID.Compare)
	return closed
}

// Next is when Sleep may have something to close; zero: not before the next call of another method.
func (b *Book) Next() (at time.Time) {
	for _, u := range b.awake {
		if t := b.idle(u); at.IsZero() || t.Before(at) {
			at = t
		}
	}
	return at
}

// Open reports whether a peer has a session.
func (b *Book) Open(id peer.ID) bool {
	_, awake := b.awake[id]
	return b.members.Has(id) && (!b.sparse || awake || b.pinned.Has(id))
}

// Sparse reports whether sessions are opened by traffic.
func (b *Book) Sparse() bool { return b.sparse }

// Count is the number of sessions that are open.
func (b *Book) Count() int {
	if !b.sparse {
		return len(b.members)
	}
	n := len(b.awake)
	for id := range b.pinned {
		if _, awake := b.awake[id]; !awake && b.members.Has(id) {
			n++
		}
	}
	return n
}

// bound closes the sessions that were idle for the longest time when there are too many. Pods' traffic outlives gossip's,
// and the one that was used last stays.
func (b *Book) bound() {
	if len(b.awake) <= MostAwake {
		return
	}
	ids := make([]peer.ID, 0, len(b.awake))
	for id := range b.awake {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(x, y peer.ID) int {
		return cmp.Or(b.idle(b.awake[x]).Compare(b.idle(b.awake[y])), x.Compare(y))
	})
	for _, id := range ids[:len(b.awake)-MostAwake*7/8] { // some at once, so that it is not done for each packet
		delete(b.awake, id)
	}
}
