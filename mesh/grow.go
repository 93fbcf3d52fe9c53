package mesh

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"weft/crypto/identity"
	"weft/mesh/peer"
)

// Add verifies items, saves them and makes them known. All or none enter; what is known already is no error.
func (r *Roster) Add(items ...identity.Item) error {
	raws := make([][]byte, len(items))
	for i, item := range items {
		raws[i] = item.Raw()
	}
	if err := r.AddRaw(raws...); err != nil {
		return fmt.Errorf("add to roster: %w", err)
	}
	return nil
}

// AddRaw is Add for items as they came over the wire, of any kind.
func (r *Roster) AddRaw(items ...[]byte) error {
	err := r.grow(items, true)
	return err
}

// news clones those of items that are not known: what every stream brings is known already, and must not wait for a save.
func (r *Roster) news(items [][]byte) [][]byte {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var news [][]byte
	for _, raw := range items {
		if r.items[sha256.Sum256(raw)] == nil {
			news = append(news, bytes.Clone(raw))
		}
	}
	return news
}

// grow takes the good ones of items, or with strict none unless all are good. The error tells of the bad ones.
func (r *Roster) grow(items [][]byte, strict bool) error {
	if items = r.news(items); len(items) == 0 {
		r.settle()
		return nil
	}
	r.write.Lock()
	p, bad := r.plan(items)
	if strict && bad != nil {
		p = plan{}
	}
	if len(p.add) == 0 {
		r.write.Unlock()
		return bad
	}
	err := r.archive.keep(p.add, r.sizeWith(p), func() []byte { return r.snapshotWith(p) })
	if err != nil {
		bad = errors.Join(fmt.Errorf("save roster: %w", err), bad)
		if p = r.urgent(p); strict {
			p = plan{}
		}
	}
	if len(p.add) > 0 {
		r.owe(err != nil)
		r.apply(p)
	}
	r.write.Unlock()
	if len(p.add) > 0 {
		r.changed(p.growth(strict))
	}
	return bad
}

// urgent is what of a plan holds even where it cannot be saved, because the disk is full: whoever was removed must not stay
// for that. It is saved as soon as there is room, and a start before that hears of it again. It reads only, under the write
// lock.
func (r *Roster) urgent(p plan) plan {
	u := plan{drop: map[hash]struct{}{}, foreign: r.foreign}
	for _, e := range p.add {
		switch item := e.item.(type) {
		case *identity.Removal:
			u.add = append(u.add, e)
			if old := r.removed[item.Node]; old != nil {
				u.drop[hash(sha256.Sum256(old.Raw()))] = struct{}{}
			}
		case *identity.Revocation:
			u.add = append(u.add, e)
		}
	}
	return u
}

// saveAgain is the pause before what could not be saved is saved again.
const saveAgain = 5 * time.Second

// owe notes that something holds and is not saved, or that all is. It is called with the write lock held.
func (r *Roster) owe(something bool) {
	if something {
		r.retry = time.Now().Add(saveAgain)
	}
	r.owes.Store(something)
}

// settle tries again to save what could not be saved when it came.
func (r *Roster) settle() {
	if !r.owes.Load() {
		return
	}
	r.write.Lock()
	defer r.write.Unlock()
	if !r.owes.Load() || time.Now().Before(r.retry) {
		return
	}
	err := r.archive.keep(nil, r.sizeWith(plan{}), func() []byte { return r.snapshotWith(plan{}) })
	r.owe(err != nil)
}

// growth is what has come to the roster.
type growth struct {
	members  []peer.ID // of certificates
	removals bool
	own      [][]byte // items that this node has added itself
}

func (p plan) growth(own bool) growth {
	var g growth
	for _, e := range p.add {
		switch item := e.item.(type) {
		case *identity.Certificate:
			g.members = append(g.members, item.ID())
		case *identity.Removal:
			g.removals = true
		}
		if own {
			g.own = append(g.own, e.raw)
		}
	}
	return g
}

// plan is a change of the roster that is not made yet.
type plan struct {
	add     []entry
	drop    map[hash]struct{}
	foreign []hash // all that are kept afterwards; nil when nothing changes
}

type entry struct {
	key  hash
	raw  []byte
	item identity.Item // nil when its kind is unknown
}

// plan verifies what is new among items. It reads only, under the write lock.
func (r *Roster) plan(items [][]byte) (plan, error) {
	p := plan{drop: map[hash]struct{}{}}
	certificates, removals := map[peer.ID]entry{}, map[peer.ID]entry{} // the best new ones
	var errs []error
	seen := map[hash]struct{}{}
	forged := 0
	for _, raw := range items {
		key := hash(sha256.Sum256(raw))
		if _, again := seen[key]; again || r.items[key] != nil {
			continue
		}
		seen[key] = struct{}{}
		item, err := r.memo.item(raw, r.check)
		if err != nil {
			if errs = append(errs, err); errors.Is(err, identity.ErrSignature) {
				forged++
			}
			if forged == maxForged {
				break
			}
			continue
		}
		e := entry{key, raw, item}
		switch item := item.(type) {
		case *identity.Certificate:
			choose(certificates, r.certificates, item.ID(), item, e)
		case *identity.Removal:
			choose(removals, r.removed, item.Node, item, e)
		default:
			p.add = append(p.add, e)
		}
	}
	for id, e := range certificates {
		p.add = append(p.add, e)
		if old := r.certificates[id]; old != nil {
			p.drop[hash(sha256.Sum256(old.Raw()))] = struct{}{}
		}
	}
	for id, e := range removals {
		p.add = append(p.add, e)
		if old := r.removed[id]; old != nil {
			p.drop[hash(sha256.Sum256(old.Raw()))] = struct{}{}
		}
	}
	r.planForeign(&p)
	return p, summarize("items", errs)
}

// choose makes e the best new item about id, unless one as good is known or was chosen.
func choose[T interface {
	comparable
	Compare(other T) int
}](best map[peer.ID]entry, known map[peer.ID]T, id peer.ID, item T, e entry) {
	var none T
	if old := known[id]; old != none && old.Compare(item) <= 0 {
		return
	}
	if chosen, ok := best[id]; ok && any(chosen.item).(T).Compare(item) <= 0 {
		return
	}
	best[id] = e
}

// planForeign keeps the maxForeign items of unknown kinds with the smallest hashes.
func (r *Roster) planForeign(p *plan) {
	kept := slices.Clone(r.foreign)
	for _, e := range p.add {
		if e.item == nil {
			kept = append(kept, e.key)
		}
	}
	slices.SortFunc(kept, hash.compare)
	if len(kept) > maxForeign {
		for _, key := range kept[maxForeign:] {
			p.drop[key] = struct{}{}
		}
		kept = kept[:maxForeign]
	}
	p.foreign = kept
	p.add = slices.DeleteFunc(p.add, func(e entry) bool {
		_, no := p.drop[e.key]
		return no
	})
}

// check parses and verifies one item. It answers nil for a kind that this build does not know.
func (r *Roster) check(raw []byte) (identity.Item, error) {
	if len(raw) > identity.MaxItem {
		return nil, fmt.Errorf("item of %d bytes, at most %d", len(raw), identity.MaxItem)
	}
	item, err := identity.Parse(raw)
	if errors.Is(err, identity.ErrKind) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	switch item := item.(type) {
	case *identity.Certificate:
		if item.Founder() && item.ID() != r.founder {
			return nil, fmt.Errorf("certificate of %s: a founder's, but the founder is %s", item.ID(), r.founder)
		}
	case *identity.Delegation, *identity.Invitation, *identity.Revocation, *identity.Removal:
	default:
		return nil, fmt.Errorf("a %s is no part of a roster", item.Kind())
	}
	if err := item.Verify(r.root); err != nil {
		return nil, err
	}
	return item, nil
}

// apply makes a planned change visible.
func (r *Roster) apply(p plan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range p.drop {
		if r.items[key] != nil {
			delete(r.items, key)
			r.tree.remove(key[0], key)
		}
	}
	for _, e := range p.add {
		r.items[e.key] = e.raw
		if e.item != nil {
			r.items[e.key] = e.item.Raw() // the same bytes, once
		}
		r.tree.add(e.key[0], e.key)
		r.facts.learn(e.item)
	}
	r.foreign = p.foreign
}

func (f *facts) learn(item identity.Item) {
	switch item := item.(type) {
	case *identity.Certificate:
		id := item.ID()
		if old := f.certificates[id]; old != nil && old.Invitation != nil {
			delete(f.joined[old.Invitation.ID()], id)
		}
		f.certificates[id] = item
		if item.Invitation != nil {
			inv := item.Invitation.ID()
			if f.joined[inv] == nil {
				f.joined[inv] = peer.Set{}
			}
			f.joined[inv].Add(id)
		}
	case *identity.Delegation:
		id := item.Issuer()
		f.delegations[id] = append(f.delegations[id], item)
		slices.SortFunc(f.delegations[id], func(a, b *identity.Delegation) int { return bytes.Compare(a.Raw(), b.Raw()) })
	case *identity.Invitation:
		if old := f.invitations[item.ID()]; old == nil || compareInvitations(item, old) < 0 {
			f.invitations[item.ID()] = item
		}
	case *identity.Revocation:
		f.revoked[revoked{item.Of, item.Target}] = struct{}{}
	case *identity.Removal:
		f.removed[item.Node] = item
	}
}

// compareInvitations orders by age. Of two for one token the older holds: terms do not change afterwards.
func compareInvitations(a, b *identity.Invitation) int {
	if n := a.Created.Compare(b.Created); n != 0 {
		return n
	}
	return bytes.Compare(a.Raw(), b.Raw())
}

// sizeWith is about how large a snapshot is: what a plan drops is counted yet.
func (r *Roster) sizeWith(p plan) int {
	size := 1
	for _, raw := range r.items {
		size += itemHead + len(raw)
	}
	for _, e := range p.add {
		size += itemHead + len(e.raw)
	}
	return size
}

func (r *Roster) snapshotWith(p plan) []byte {
	b := append(make([]byte, 0, r.sizeWith(p)), byte(listVersion))
	for key, raw := range r.items {
		if _, gone := p.drop[key]; !gone {
			b = appendItem(b, raw)
		}
	}
	for _, e := range p.add {
		b = appendItem(b, e.raw)
	}
	return b
}

// Merge takes every good item of a snapshot or delta. The error tells of the bad ones.
func (r *Roster) Merge(b []byte) error {
	items, broken := splitList(received("roster", b))
	bad := r.grow(items, false)
	return errors.Join(broken, bad)
}
