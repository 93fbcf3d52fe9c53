package mesh

import (
	"context"
	"fmt"
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
		m.records.forget(r.Node)
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
	req := tlv.AppendList(tlv.AppendVersion(nil, itemsVersion), itemsList, raws)
	var mu sync.Mutex // guards have
	var have []peer.ID
	var calls sync.WaitGroup
	defer calls.Wait()
	places := make(chan struct{}, tellsAtOnce)
	for _, id := range m.alive() {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			calls.Wait()
			return have, nil
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
	return have, nil
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
	return nil, m.roster.grow(items, false)
}
