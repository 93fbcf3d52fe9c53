package mesh

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/crypto/identity"
	"weft/mesh/peer"
)

// Limits of the roster.
const (
	maxForeign = 256     // items of unknown kinds that are kept: those with the smallest hashes
	maxForged  = 1000    // items with bad signatures after which the rest of one message is not looked at
	maxDelta   = 8 << 20 // bytes of one answer; what remains differs still and is asked for again
)

// Roster is the set of signed facts about who belongs to the cluster. It only grows: a node's certificate gives way to an
// older one of the same node and its removal to a weightier one, nothing else is ever replaced. Every item was verified
// against the root before it entered, and was saved before anybody could see it, but for removals that come while the disk
// is full. An item of a kind that this build does not know is kept and passed on unread; such items are limited by number,
// and because the ones kept are chosen by hash, two rosters that merge end up alike whatever the order.
type Roster struct {
	root    ed25519.PublicKey
	founder peer.ID
	archive archive
	memo    *Memo
	changed func(growth) // after every change, outside the locks

	write sync.Mutex  // held from reading to publishing a change, also while it is saved
	owes  atomic.Bool // something holds that is not saved: see urgent. Set under the write lock
	retry time.Time   // when to save it again; under the write lock

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
	removed      map[peer.ID]*identity.Removal
}

type revoked struct {
	kind identity.Kind
	id   identity.ItemID
}

// newRoster takes what the store held. The error tells what of it was not good; the roster can be used even so.
func newRoster(c *identity.Cluster, store Store, saved []byte, memo *Memo) (*Roster, error) {
	r := &Roster{
		root:    c.Root,
		founder: c.Founder,
		archive: archive{store: store},
		memo:    memo,
		changed: func(growth) {},
		items:   map[hash][]byte{},
		facts: facts{
			certificates: map[peer.ID]*identity.Certificate{},
			delegations:  map[peer.ID][]*identity.Delegation{},
			invitations:  map[identity.ItemID]*identity.Invitation{},
			revoked:      map[revoked]struct{}{},
			joined:       map[identity.ItemID]peer.Set{},
			removed:      map[peer.ID]*identity.Removal{},
		},
	}
	items, broken := splitList(listItems("roster", slices.Clone(saved)))
	plan, bad := r.plan(items)
	r.apply(plan)
	err := errors.Join(broken, bad)
	r.archive.found(saved, err)
	return r, err
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

// memberKey is the key of somebody who may still speak.
func (r *Roster) memberKey(id peer.ID) (ed25519.PublicKey, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	c := r.certificates[id]
	if c == nil || r.removed[id] != nil {
		return nil, false
	}
	return c.Public(), true
}

// Members lists all who hold a certificate, the removed too, in ascending order.
func (r *Roster) Members() []peer.ID {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.SortedFunc(maps.Keys(r.certificates), peer.ID.Compare)
}

// size counts the members with self, even if it was removed: then there are no others to it.
func (r *Roster) size(self peer.ID) int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.removed[self] != nil {
		return 1
	}
	n := len(r.certificates)
	for id := range r.removed {
		if r.certificates[id] != nil {
			n--
		}
	}
	return n
}

// Member reports whether id holds a certificate and was not removed.
func (r *Roster) Member(id peer.ID) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.certificates[id] != nil && r.removed[id] == nil
}

// Removal is what ended the membership of id, if it was ended. The certificate of id may not be known.
func (r *Roster) Removal(id peer.ID) (*identity.Removal, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	rem, ok := r.removed[id]
	return rem, ok
}

// Removed reports whether the membership of id was ended.
func (r *Roster) Removed(id peer.ID) bool {
	_, ok := r.Removal(id)
	return ok
}

// Removals lists who was removed and why, in ascending order of the IDs.
func (r *Roster) Removals() []*identity.Removal {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.SortedFunc(maps.Values(r.removed), func(a, b *identity.Removal) int { return a.Node.Compare(b.Node) })
}

// ErrIssuer says that a certificate that nobody has vouched for comes from an issuer who may issue no more.
var ErrIssuer = errors.New("issued by a member that may issue no more")

// Vouched says whether a certificate may be taken from the node that shows it. What an issuer signed while it was one
// stays, and is on the roster of a quorum since; what appears for the first time when its delegation is revoked or it was
// removed may have been signed yesterday or just now, and comes in only by way of a member that knows it already.
func (r *Roster) Vouched(c *identity.Certificate) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if known := r.certificates[c.ID()]; known != nil && bytes.Equal(known.Raw(), c.Raw()) || c.Delegation == nil {
		return nil
	}
	_, revoked := r.revoked[revoked{identity.KindDelegation, c.Delegation.ID()}]
	if revoked || r.removed[c.Delegation.Issuer()] != nil {
		return ErrIssuer
	}
	return nil
}

// Voters lists the members that have a vote, most senior first.
func (r *Roster) Voters() []peer.Voter {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.voters(func(id peer.ID) bool { return r.removed[id] != nil })
}

// Electorate lists who counts when a quorum is asked for, most senior first: all who ever had a vote but for those whose
// removal is complete. Between an issuer's word and its completion a removed voter counts as one that does not answer, or
// two halves that remove each other would both go on.
func (r *Roster) Electorate(complete peer.Set) []peer.Voter {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.voters(complete.Has)
}

// voters is called with the lock held.
func (r *Roster) voters(gone func(peer.ID) bool) []peer.Voter {
	var voters []peer.Voter
	for id, c := range r.certificates {
		if v, votes := c.Voter(); votes && !gone(id) {
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

// Delegation is what lets id issue: a delegation of the root that was not revoked, while id was not removed.
func (r *Roster) Delegation(id peer.ID) (*identity.Delegation, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.delegation(id)
}

// delegation is called with the lock held.
func (r *Roster) delegation(id peer.ID) (*identity.Delegation, bool) {
	if r.removed[id] != nil {
		return nil, false
	}
	for _, d := range r.delegations[id] {
		if _, no := r.revoked[revoked{identity.KindDelegation, d.ID()}]; !no {
			return d, true
		}
	}
	return nil, false
}

// Issued reports whether id ever held a delegation: what it signed while it did stays signed.
func (r *Roster) Issued(id peer.ID) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.delegations[id]) > 0
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

// holds reports whether all items of a list are part of the roster.
func (r *Roster) holds(list []byte) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for raw, err := range listItems("roster", list) {
		if err != nil || r.items[sha256.Sum256(raw)] == nil {
			return false
		}
	}
	return true
}

func (r *Roster) unknownItems() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.foreign)
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
