package weftd

import (
	"context"
	"errors"
	"slices"

	"weft/mesh/peer"
	"weft/mesh/sparse"
	"weft/prog/wire"
)

// In a large cluster the wire opens sessions when there is something to send, and closes them when there is nothing. That
// the cluster is large, and whose sessions must stay, is decided here; who sleeps, in the wire, which goes on without us.

// tellSparse tells the wire whether the cluster is large. It is called before the peers are told: a wire that has just
// started would else begin with a handshake to each of them.
func (n *node) tellSparse(ctx context.Context) error {
	n.glue.mu.Lock()
	defer n.glue.mu.Unlock()
	told := n.glue.sparse
	want := wire.Sparse{On: sparse.Wanted(n.cfg.SparseAbove, 1+len(n.company()), told != nil && told.On), Idle: n.cfg.SparseIdle}
	if told != nil && *told == want {
		return nil
	}
	if err := n.link.SetSparse(ctx, want); err != nil {
		return err
	}
	switch was := told != nil && told.On; {
	case want.On && !was:
		n.log.Info("the cluster is large: sessions follow traffic", "count", 1+len(n.company()))
	case was && !want.On:
		n.log.Info("the cluster is small again: all sessions are open", "count", 1+len(n.company()))
	}
	n.glue.sparse = &want
	n.glue.large.Store(want.On)
	return nil
}

// pinned reports whether the session with a member stays open whatever the traffic: one of the two is at home at the
// other, by its record. Both know both records, so both ends pin alike.
func (n *node) pinned(m peer.Info, own peer.Info) bool {
	at := func(id peer.ID) func(peer.Home) bool { return func(h peer.Home) bool { return h.ID == id } }
	return slices.ContainsFunc(m.Homes, at(own.ID)) || slices.ContainsFunc(own.Homes, at(m.ID))
}

// isSparse reports whether the wire was told that the cluster is large.
func (n *node) isSparse() bool {
	return n.glue.large.Load()
}

// SetSparse says whether sessions are opened by traffic.
func (l *wirelink) SetSparse(ctx context.Context, s wire.Sparse) error {
	return l.tell(ctx, func() { l.sparse = &s }, func(ctx context.Context, c *wire.Client) error { return tellSparse(ctx, c, s) })
}

// tellSparse bears a wire of an older weft, whose sessions are all open.
func tellSparse(ctx context.Context, c *wire.Client, s wire.Sparse) error {
	if err := c.SetSparse(ctx, s); !errors.Is(err, wire.ErrUnsupported) {
		return err
	}
	return nil
}
