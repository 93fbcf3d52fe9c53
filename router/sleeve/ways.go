package sleeve

import (
	"time"

	"weft/mesh/path"
	"weft/mesh/peer"
)

// ways is what links know of each other: which peers can carry for them, and which streams are open. nil: none.
type ways struct {
	version func() uint64 // rises with each change
	carries func(peer.ID) bool
	streams func(peer.ID) bool // it is reached by a stream
	relays  func() []peer.ID   // all that are known, also those of other peers
	open    func(path.Path) bool
}

// look tells paths which ways there are now, if that is news.
func (l *link) look(now time.Time) {
	w := l.node.ways
	var version uint64
	if w != nil {
		version = w.version()
	}
	if !l.stale && version == l.known {
		return
	}
	l.stale, l.known = false, version
	var carry []peer.ID
	usable := func(path.Path) bool { return false }
	if w != nil {
		usable = w.usable
		for _, id := range l.peer.Relays {
			if w.carries(id) {
				carry = append(carry, id)
			}
		}
	}
	all := make([]path.Path, 0, len(l.peer.Endpoints)+len(carry))
	for _, ep := range l.peer.Endpoints {
		all = append(all, path.Direct(ep))
	}
	for _, id := range carry {
		all = append(all, path.Through(id))
	}
	if w != nil && len(carry) == 0 {
		others := func(id peer.ID) bool { return id != l.peer.ID && w.carries(id) } // the peer is no way to itself
		all = append(all, path.Chains(l.peer.Relays, w.relays(), others)...)
	}
	for _, ep := range l.peer.TCP {
		if p := path.Stream(ep); usable(p) {
			all = append(all, p)
		}
	}
	fresh := l.paths.Want(all, usable, now)
	if w != nil {
		l.paths.Streamed(func(p path.Path) bool { return w.streams(p.Via[0]) })
	}
	if l.current == nil && fresh {
		l.hurry(now)
	}
}

// usable reports whether something can be sent on a path that needs others.
func (w *ways) usable(p path.Path) bool {
	if p.Relayed() {
		return w.carries(p.Via[0])
	}
	return w.open(p)
}
