package ipam

import (
	"cmp"
	"context"
	"slices"
	"time"

	"weft/ipam/ring"
	"weft/mesh/peer"
)

// Who has promised to refuse a member takes what that one wrote only where a record confirms it, and the record is the
// coordinator's to write. A coordinator that leaves takes with it the reason to write one: the other issuers may never have
// promised, and where the removed one had given all back before, they see nothing that is left to do. So whoever is bound by
// such a promise tells an issuer, which completes a view.
//
//	promised ── its coordinator is no issuer any more ──> stranded ── told to an issuer, again and again ──> a record: free

const (
	strandedFirst = 10 * time.Second // from one telling to the next, and then
	strandedLast  = 10 * time.Minute
)

// plea is how a remover tells of stranded promises.
type plea struct {
	next  time.Time
	pause time.Duration
	nth   int // so that another issuer is told each time
}

// plead tells an issuer whom this node is bound to refuse without anybody being there to confirm it.
func (m *remover) plead(ctx context.Context) {
	issuers := m.a.cfg.Roster.Issuers()
	stranded := m.a.stranded(issuers)
	now := m.a.now()
	switch {
	case len(stranded) == 0 || slices.Contains(issuers, m.a.self): // an issuer sees to it itself
		m.plea = plea{}
		return
	case now.Before(m.plea.next):
		return
	}
	m.plea.pause = min(max(2*m.plea.pause, strandedFirst), strandedLast)
	m.plea.next = now.Add(m.plea.pause)
	alive := slices.DeleteFunc(slices.Clone(m.a.cfg.Network.Peers()), func(p peer.Info) bool {
		return p.State != peer.Alive || !slices.Contains(issuers, p.ID)
	})
	if len(alive) == 0 {
		return
	}
	slices.SortFunc(alive, func(x, y peer.Info) int { return cmp.Compare(x.JoinSeq, y.JoinSeq) })
	to := alive[m.plea.nth%len(alive)].ID
	m.plea.nth++
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := m.a.cfg.Network.Call(ctx, to, methodPush, push{refused: stranded}.encode()); err != nil {
		m.a.log.Debug("issuer not told of a removal without a record", "peer", to, "err", err)
	}
}

// stranded lists whom this node refuses by a promise that no issuer has to see to.
func (a *Allocator) stranded(issuers []peer.ID) (ids []peer.ID) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	led := a.promised != nil && slices.Contains(issuers, a.promised.Writer())
	for id, number := range a.refused {
		if !a.ring.Names(id) && a.ring.Recalls(number) && (!led || !a.promised.Names(id)) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, peer.ID.Compare)
	return ids[:min(len(ids), ring.MaxNamed)]
}

// pledge makes removals that others are bound by this node's to complete; on Run's goroutine. It does so once for each in a
// run, so that nobody can have views made for ever.
func (a *Allocator) pledge(ids []peer.ID) {
	removed := make(peer.Set)
	for _, r := range a.cfg.Roster.Removals() {
		removed.Add(r.Node)
	}
	fresh := false
	a.mu.Lock()
	for _, id := range ids {
		if _, known := a.pledged[id]; removed.Has(id) && !known && !a.ring.Names(id) {
			a.pledged[id] = a.ring.Number() + 1
			fresh = true
		}
	}
	a.mu.Unlock()
	if fresh {
		a.RosterChanged()
	}
}
