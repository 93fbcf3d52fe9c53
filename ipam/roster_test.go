package ipam

import (
	"encoding/binary"
	"maps"
	"slices"
	"sync"

	"weft/mesh/peer"
)

// facts is what one machine knows about removals. Who is a member all machines know.
type facts struct {
	n *node

	mu       sync.Mutex // guards the rest
	removals map[peer.ID]Removal
	joining  []peer.Info
}

var _ Roster = (*facts)(nil)

func (f *facts) Removals() []Removal {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Values(f.removals))
}

func (f *facts) removed(id peer.ID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.removals[id]
	return ok
}

func (f *facts) Issuers() []peer.ID {
	var ids []peer.ID
	for _, m := range f.n.c.nodes {
		if f.Issued(m.key.ID()) && m.joined.Load() && !f.removed(m.key.ID()) {
			ids = append(ids, m.key.ID())
		}
	}
	return ids
}

// Issued: the first three machines hold the right to remove others.
func (f *facts) Issued(id peer.ID) bool {
	i := slices.IndexFunc(f.n.c.nodes, func(m *node) bool { return m.key.ID() == id })
	return i >= 0 && i < 3
}

func (f *facts) Joining() []peer.Info {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.joining)
}

func (f *facts) Summary() []byte { return []byte{} }

func (f *facts) Delta([]byte) []byte {
	var b []byte
	for _, r := range f.Removals() {
		b = append(b, r.Node[:]...)
		flags := byte(0)
		for i, set := range []bool{r.Left, r.Stolen, r.Silent} {
			if set {
				flags |= 1 << i
			}
		}
		b = binary.BigEndian.AppendUint64(append(b, flags), r.Incarnation)
	}
	return b
}

func (f *facts) Merge(b []byte) error {
	for e := range slices.Chunk(b, peer.IDSize+9) {
		flags := e[peer.IDSize]
		f.add(Removal{
			Node: peer.ID(e), Left: flags&1 != 0, Stolen: flags&2 != 0, Silent: flags&4 != 0,
			Incarnation: binary.BigEndian.Uint64(e[peer.IDSize+1:]),
		})
	}
	return nil
}

// add makes a removal known to this machine.
func (f *facts) add(r Removal) {
	f.mu.Lock()
	_, known := f.removals[r.Node]
	if !known {
		f.removals[r.Node] = r
	}
	f.mu.Unlock()
	if a := f.n.up(); a != nil && !known {
		a.RosterChanged()
	}
}
