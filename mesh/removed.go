package mesh

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"weft/crypto/identity"
	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// Timing and limits of telling items.
const (
	tellTime    = 3 * time.Second // for one member to say that it has them
	tellsAtOnce = 32
	maxTold     = 256 // items in one message

	farewellHeard = 3  // members that keep a node's own removal, before it falls silent
	farewellTries = 32 // members that it asks for that
)

// methodItems hands items of the roster over, to be kept before it is answered.
//
//	request  version(1)  fields: items (list)      answer  empty
const (
	methodItems  = "mesh.items"
	itemsVersion = tlv.Version(0x10)
	itemsList    = 1
)

// partWithRemoved makes new removals take effect: what the removed said is forgotten, and nothing of theirs is taken any
// more. Memberlist refuses their rumours and finds by itself that they do not answer. The mesh's consumers, whom poke
// wakes, drop keys, paths and routes.
func (m *Mesh) partWithRemoved() {
	for _, r := range m.roster.Removals() {
		m.mu.Lock()
		known := m.parted.Has(r.Node)
		m.parted.Add(r.Node)
		m.mu.Unlock()
		if known {
			continue
		}
		if r.Node == m.self {
			signal(m.farewell)
		}
		m.records.forget(r.Node)
		m.bury(r.Node)
		m.log.Warn("member removed", "peer", r.Node, "reason", r.Reason.String(), "from", r.Issuer())
	}
}

// Tell keeps items and hands them to every member that is alive, at once instead of with the next gossip. It returns when
// all have answered or ctx ends, with those who have the items on disk, this node not among them. A node's own removal is
// not kept here: who was removed speaks with nobody, and has to tell first.
func (m *Mesh) Tell(ctx context.Context, items ...identity.Item) ([]peer.ID, error) {
	if len(items) > maxTold {
		return nil, fmt.Errorf("tell %d items, at most %d", len(items), maxTold)
	}
	raws := make([][]byte, len(items))
	for i, item := range items {
		raws[i] = item.Raw()
	}
	kept := slices.DeleteFunc(slices.Clone(items), func(item identity.Item) bool {
		r, ok := item.(*identity.Removal)
		return ok && r.Node == m.self
	})
	if err := m.roster.Add(kept...); err != nil {
		return nil, err
	}
	return m.handOver(ctx, m.alive(), raws), nil
}

// handOver asks members to keep items, and tells who does.
func (m *Mesh) handOver(ctx context.Context, to []peer.ID, raws [][]byte) []peer.ID {
	req := tlv.AppendList(tlv.AppendVersion(nil, itemsVersion), itemsList, raws)
	var mu sync.Mutex // guards have
	var have []peer.ID
	var calls sync.WaitGroup
	places := make(chan struct{}, tellsAtOnce)
	for _, id := range to {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			calls.Wait()
			return have
		}
		calls.Go(func() {
			defer func() { <-places }()
			ctx, cancel := context.WithTimeout(ctx, tellTime)
			defer cancel()
			if _, err := m.call(ctx, id, methodItems, req, MaxMessage); err != nil {
				m.log.Debug("items not handed over; gossip will bring them", "peer", id, "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			have = append(have, id)
		})
	}
	calls.Wait()
	slices.SortFunc(have, peer.ID.Compare)
	return have
}

// bidFarewell hands a removal of this node that it was just shown to members that may not have heard of it: whoever signed
// it may be gone, and would leave the others to count this node as a voter that is silent. It takes no right that a removed
// member does not have: those who know of the removal refuse the call, and to the others it is a member that hands over a
// signed item. It returns when that is done, or ctx ends.
func (m *Mesh) bidFarewell(ctx context.Context) {
	select {
	case <-m.farewell:
	case <-ctx.Done():
		return
	}
	r, ok := m.roster.Removal(m.self)
	if !ok {
		return
	}
	ids := slices.Clone(m.rumouredAlive())
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	heard := 0
	for some := range slices.Chunk(ids[:min(len(ids), farewellTries)], farewellHeard) {
		if heard += len(m.handOver(ctx, some, [][]byte{r.Raw()})); heard >= farewellHeard || ctx.Err() != nil {
			break
		}
	}
	m.log.Info("others told of our own removal", "count", heard)
}

// serveItems is the handler of methodItems. The items are signed: who hands them over does not matter.
func (m *Mesh) serveItems(_ context.Context, _ peer.ID, req []byte) ([]byte, error) {
	_, fields, err := tlv.ParseVersioned("items", req, itemsVersion)
	if err != nil {
		return nil, err
	}
	r := tlv.NewReader(fields)
	r.Require(itemsList)
	items := r.List(itemsList, maxTold)
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("read items: %w", err)
	}
	if err := m.roster.grow(items, false); err != nil {
		return nil, err
	}
	if m.roster.owes.Load() { // perhaps of these
		return nil, errNotSaved
	}
	return nil, nil
}

// errNotSaved says that this member knows something, and would not after a crash.
var errNotSaved = errors.New("the roster cannot be saved here now")
