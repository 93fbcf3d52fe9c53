package mesh

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"weft/crypto/identity"
	"weft/mesh/peer"
)

// Limits of the roster.
const (
	maxForeign = 256     // items of unknown kinds that are kept: those with the smallest hashes
	maxForged  = 1000    // items with bad signatures after which the rest of one message is not looked at
	maxDelta   = 8 << 20 // bytes of one answer; what remains differs still and is asked for again
)

// Roster is the set of signed facts about who belongs to the cluster. It only grows: a node's certificate gives way to
// an older one of the same node, nothing else is ever replaced. Every item was verified against the root before it
// entered, and was saved before anybody could see it. An item of a kind that this build does not know is kept and passed
// on unread; such items are limited by number, and because the ones kept are chosen by hash, two rosters that merge end
// up alike whatever the order.
type Roster struct {
	root    ed25519.PublicKey
	founder peer.ID
	store   Store
	changed func() // after every growth, outside the locks

	write sync.Mutex // held from reading to publishing a change, also while it is saved

	mu      sync.RWMutex // guards all below
	items   map[hash][]byte
	tree    tree
	foreign []hash // of unknown kinds, sorted
	facts
}

// facts is the roster as it is asked. It is made from items and could be made again.
type facts struct {
	certificates map[peer.ID]*identity.Certificate
	delegations  map[peer.ID][]*identity.Delegation
	invitations  map[identity.ItemID]*identity.Invitation
	revoked      map[revoked]struct{}
	joined       map[identity.ItemID]peer.Set // by invitation
}

type revoked struct {
	kind identity.Kind
	id   identity.ItemID
}

func newRoster(c *identity.Cluster, store Store, saved []byte) (*Roster, error) {
	r := &Roster{
		root:    c.Root,
		founder: c.Founder,
		store:   store,
		changed: func() {},
		items:   map[hash][]byte{},
		facts: facts{
			certificates: map[peer.ID]*identity.Certificate{},
			delegations:  map[peer.ID][]*identity.Delegation{},
			invitations:  map[identity.ItemID]*identity.Invitation{},
			revoked:      map[revoked]struct{}{},
			joined:       map[identity.ItemID]peer.Set{},
		},
	}
	var items [][]byte
	for raw, err := range listItems("roster", saved) {
		if err != nil {
			return nil, err
		}
		items = append(items, bytes.Clone(raw))
	}
	plan, err := r.plan(items)
	if err != nil {
		return nil, err
	}
	r.apply(plan)
	return r, nil
}

// Root is the key that every item is verified against.
func (r *Roster) Root() ed25519.PublicKey { return r.root }

// Has reports whether id holds a certificate. A removed member still has one.
func (r *Roster) Has(id peer.ID) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.certificates[id] != nil
}

// Certificate is the member's certificate.
func (r *Roster) Certificate(id peer.ID) (*identity.Certificate, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	c, ok := r.certificates[id]
	return c, ok
}

func (r *Roster) publicKey(id peer.ID) (ed25519.PublicKey, bool) {
	c, ok := r.Certificate(id)
	if !ok {
		return nil, false
	}
	return c.Public(), true
}

// Members lists all who hold a certificate, in ascending order.
func (r *Roster) Members() []peer.ID {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.SortedFunc(maps.Keys(r.certificates), peer.ID.Compare)
}

// Voters lists the members that count for a quorum, most senior first.
func (r *Roster) Voters() []peer.Voter {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var voters []peer.Voter
	for _, c := range r.certificates {
		if v, votes := c.Voter(); votes {
			voters = append(voters, v)
		}
	}
	slices.SortFunc(voters, func(a, b peer.Voter) int {
		if a.JoinSeq != b.JoinSeq {
			if a.JoinSeq < b.JoinSeq {
				return -1
			}
			return 1
		}
		return a.ID.Compare(b.ID)
	})
	return voters
}

// Delegation is what lets id issue: a delegation of the root that was not revoked.
func (r *Roster) Delegation(id peer.ID) (*identity.Delegation, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.delegation(id)
}

// delegation is called with the lock held.
func (r *Roster) delegation(id peer.ID) (*identity.Delegation, bool) {
	for _, d := range r.delegations[id] {
		if _, no := r.revoked[revoked{identity.KindDelegation, d.ID()}]; !no {
			return d, true
		}
	}
	return nil, false
}

// Issuers lists the members that may issue, in ascending order.
func (r *Roster) Issuers() []peer.ID {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var ids []peer.ID
	for id := range r.delegations {
		if _, ok := r.delegation(id); ok && r.certificates[id] != nil {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, peer.ID.Compare)
	return ids
}

// Invitation is the record of a token.
func (r *Roster) Invitation(id identity.ItemID) (*identity.Invitation, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	inv, ok := r.invitations[id]
	return inv, ok
}

// Invitations lists all records of tokens, oldest first.
func (r *Roster) Invitations() []*identity.Invitation {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.SortedFunc(maps.Values(r.invitations), compareInvitations)
}

// Revoked reports whether an invitation or delegation was revoked.
func (r *Roster) Revoked(kind identity.Kind, id identity.ItemID) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	_, ok := r.revoked[revoked{kind, id}]
	return ok
}

// Uses counts the members that joined with an invitation.
func (r *Roster) Uses(id identity.ItemID) int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.joined[id])
}

// JoinedWith lists the members that joined with an invitation, in ascending order.
func (r *Roster) JoinedWith(id identity.ItemID) []peer.ID {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.joined[id].Sorted()
}

// Items lists everything, for a node that joins; those of unknown kinds as well.
func (r *Roster) Items() [][]byte {
	r.mu.RLock()
	defer r.mu.RUnlock()
	items := make([][]byte, 0, len(r.items))
	for _, h := range slices.SortedFunc(maps.Keys(r.items), hash.compare) {
		items = append(items, r.items[h])
	}
	return items
}

func (r *Roster) unknownItems() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.foreign)
}

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
	_, err := r.grow(items, true)
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
func (r *Roster) grow(items [][]byte, strict bool) (grown bool, err error) {
	if items = r.news(items); len(items) == 0 {
		return false, nil
	}
	r.write.Lock()
	p, bad := r.plan(items)
	if strict && bad != nil {
		p = plan{}
	}
	if len(p.add) == 0 {
		r.write.Unlock()
		return false, bad
	}
	err = r.store.Save(storeRoster, r.snapshotWith(p))
	if err == nil {
		r.apply(p)
	}
	r.write.Unlock()
	if err != nil {
		return false, fmt.Errorf("save roster: %w", err)
	}
	r.changed()
	return true, bad
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
	certificates := map[peer.ID]entry{} // the best new ones
	var errs []error
	seen := map[hash]struct{}{}
	forged := 0
	for _, raw := range items {
		key := hash(sha256.Sum256(raw))
		if _, again := seen[key]; again || r.items[key] != nil {
			continue
		}
		seen[key] = struct{}{}
		item, err := r.check(raw)
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
		c, ok := item.(*identity.Certificate)
		if !ok {
			p.add = append(p.add, e)
			continue
		}
		if best, ok := certificates[c.ID()]; ok && best.item.(*identity.Certificate).Compare(c) <= 0 {
			continue
		}
		if old := r.certificates[c.ID()]; old != nil && old.Compare(c) <= 0 {
			continue
		}
		certificates[c.ID()] = e
	}
	for id, e := range certificates {
		p.add = append(p.add, e)
		if old := r.certificates[id]; old != nil {
			p.drop[hash(sha256.Sum256(old.Raw()))] = struct{}{}
		}
	}
	r.planForeign(&p)
	if len(errs) > 0 {
		return p, fmt.Errorf("%d bad items, the first: %w", len(errs), errs[0])
	}
	return p, nil
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
	case *identity.Delegation, *identity.Invitation, *identity.Revocation:
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
	}
}

// compareInvitations orders by age. Of two for one token the older holds: terms do not change afterwards.
func compareInvitations(a, b *identity.Invitation) int {
	if n := a.Created.Compare(b.Created); n != 0 {
		return n
	}
	return bytes.Compare(a.Raw(), b.Raw())
}

func (r *Roster) snapshotWith(p plan) []byte {
	b := []byte{byte(listVersion)}
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

// Digest names the content.
func (r *Roster) Digest() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tree.digest()
}

// Snapshot is the content, for Merge.
func (r *Roster) Snapshot() []byte {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.snapshotWith(plan{})
}

// Summary lets another node find what differs.
func (r *Roster) Summary() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tree.summary()
}

// Delta is what a node with this summary may lack.
func (r *Roster) Delta(summary []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	differs := r.tree.differing(summary)
	b := []byte{byte(listVersion)}
	for key, raw := range r.items {
		if differs[key[0]] && len(b) < maxDelta {
			b = appendItem(b, raw)
		}
	}
	return b
}

// Merge takes every good item of a snapshot or delta. The error tells of the bad ones.
func (r *Roster) Merge(b []byte) error {
	var items [][]byte
	var broken error
	for raw, err := range listItems("roster", b) {
		if err != nil {
			broken = err
			break
		}
		items = append(items, raw)
	}
	_, bad := r.grow(items, false)
	return errors.Join(broken, bad)
}
