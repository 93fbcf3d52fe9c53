package ring

import (
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"weft/crypto/identity"
	"weft/mesh/peer"
)

// MaxDepth bounds the chain of grants from the founder to a block. Honest chains are short: a grant names the oldest
// grant that made its writer the owner, so a block that comes back to a former owner has that owner's depth again.
const MaxDepth = 64

// ErrUnknownSigner says that a signature cannot be judged yet: the signer's certificate has not been seen.
var ErrUnknownSigner = errors.New("signer not known yet")

// Verifier judges a signature: nil, an error that wraps ErrUnknownSigner, or any other error for a bad one. The domain
// says what kind of thing was signed.
type Verifier func(signer peer.ID, domain string, msg, sig []byte) error

// Keys makes a Verifier from a look-up of the members' public keys.
func Keys(lookup func(peer.ID) (ed25519.PublicKey, bool)) Verifier {
	return func(signer peer.ID, domain string, msg, sig []byte) error {
		pub, ok := lookup(signer)
		if !ok {
			return fmt.Errorf("%w: %s", ErrUnknownSigner, signer.Short())
		}
		if !identity.Verify(pub, domain, msg, sig) {
			return fmt.Errorf("bad signature of %s", signer.Short())
		}
		return nil
	}
}

// Judge is what a proof needs beside the batch: what this node knows about members, and whom it refuses.
type Judge struct {
	Verify  Verifier           // of signatures
	Issued  func(peer.ID) bool // whether a member holds or held the right to remove others
	Removed func(peer.ID) bool // whether a member's removal is known
	// Refuse says whose writings are taken only if they are known already, or confirmed by a view record. nil refuses
	// nobody.
	Refuse func(peer.ID) bool
	// Known is the state whose entries were judged before: they are not judged again, and its records confirm. It may
	// be nil.
	Known *Ring
}

// ErrRefused says that an entry was written by a removed member and that nobody confirms it.
var ErrRefused = errors.New("written by a removed member and not confirmed")

// Batch is what Decode found: entries that can be read and were not judged yet.
type Batch struct {
	grants   []*Grant
	views    []*View
	rejected []Rejection
}

// Rejection is an entry that was left out of a merge, and why. It never hinders other entries, unless they rest on it.
type Rejection struct {
	Block netip.Prefix // zero when the entry could not be read, or is a view record
	Err   error
}

// Proven is a batch of which only what is proven is left: each grant is signed by its grantor, and its parent, which is
// in the batch too and proven, made that grantor the owner of the whole block; or a view record in the batch gives the
// right to take the block over. The proof uses nothing but the batch, so what a ring becomes does not depend on the order
// in which batches come.
type Proven struct {
	grants   []*Grant // parents first
	views    []*View  // ascending
	rejected []Rejection
}

// Rejected lists what was left out, the unreadable entries of the batch first.
func (p Proven) Rejected() []Rejection { return p.rejected }

// Prove judges a batch.
func (u *Universe) Prove(b *Batch, j Judge) Proven {
	p := Proven{rejected: slices.Clone(b.rejected)}
	proven := u.proveViews(b.views, j, &p)
	confirmed := func(id ID) bool {
		return slices.ContainsFunc(p.views, func(v *View) bool { return v.confirms(id) }) || j.Known.confirms(id)
	}
	grants := slices.Clone(b.grants)
	// A parent has a lower seq in the same view, so this order puts it first.
	slices.SortFunc(grants, func(g, h *Grant) int { return compare(g, h) })
	chains := make(map[ID]proof, len(grants))
	for _, g := range grants {
		if _, twice := chains[g.id]; twice {
			continue
		}
		depth, err := u.link(g, chains, proven)
		if err == nil && !j.Known.Has(g.id) {
			if j.refuses(g.grantor) && !confirmed(g.id) {
				err = fmt.Errorf("grant of %s by %s: %w", g.block, g.grantor.Short(), ErrRefused)
			} else {
				err = j.Verify(g.grantor, grantDomain, u.signed(g.payload), g.sig)
			}
		}
		if err != nil {
			p.rejected = append(p.rejected, Rejection{g.block, err})
			continue
		}
		chains[g.id] = proof{g, depth}
		p.grants = append(p.grants, g)
	}
	return p
}

func (j Judge) refuses(id peer.ID) bool { return j.Refuse != nil && j.Refuse(id) }

// proveViews judges records, the newest first: a record by a removed member can only be confirmed by a later one.
func (u *Universe) proveViews(views []*View, j Judge, p *Proven) map[ID]*View {
	proven := make(map[ID]*View, len(views))
	for _, v := range slices.Backward(slices.SortedFunc(slices.Values(views), compareViews)) {
		if proven[v.id] != nil {
			continue
		}
		err := error(nil)
		if !j.Known.hasView(v.id) {
			err = u.proveView(v, j, p.views)
		}
		if err != nil {
			p.rejected = append(p.rejected, Rejection{Err: fmt.Errorf("view %d of %s: %w", v.number, v.writer.Short(), err)})
			continue
		}
		proven[v.id] = v
		p.views = append(p.views, v)
	}
	slices.Reverse(p.views)
	return proven
}

func (u *Universe) proveView(v *View, j Judge, newer []*View) error {
	if !j.Issued(v.writer) {
		return fmt.Errorf("%w: its writer is not known as an issuer", ErrUnknownSigner)
	}
	if err := j.knowRemoved(v); err != nil {
		return err
	}
	if j.refuses(v.writer) && !j.Known.confirms(v.id) &&
		!slices.ContainsFunc(newer, func(w *View) bool { return w.confirms(v.id) }) {
		return ErrRefused
	}
	return j.Verify(v.writer, viewDomain, u.signed(v.payload), v.sig)
}

// knowRemoved checks that everybody whom a record removes is known to be removed: nobody is by a record alone.
func (j Judge) knowRemoved(v *View) error {
	unknown := func(id peer.ID) bool { return !j.Removed(id) }
	i := slices.IndexFunc(v.removed, func(n Named) bool { return unknown(n.Node) })
	if i >= 0 || slices.ContainsFunc(v.before, unknown) {
		return fmt.Errorf("%w: not everybody's removal is known", ErrUnknownSigner)
	}
	return nil
}

type proof struct {
	grant *Grant
	depth int
}

// link checks that the grantor owned the block by the grant's parent, or that a view record lets it take the block over.
func (u *Universe) link(g *Grant, proven map[ID]proof, views map[ID]*View) (depth int, err error) {
	if g.takeover() {
		return 1, checkTakeover(g, views[g.record])
	}
	if g.parent == (ID{}) {
		switch {
		case g.grantor != u.founder:
			return 0, fmt.Errorf("grant of %s by %s, who shows no right to it", g.block, g.grantor.Short())
		case g.view != 0:
			return 0, fmt.Errorf("grant of %s in view %d without a parent", g.block, g.view)
		}
		return 1, nil
	}
	parent, ok := proven[g.parent]
	switch {
	case !ok:
		return 0, fmt.Errorf("grant of %s rests on a grant that is not proven", g.block)
	case parent.grant.owner != g.grantor:
		return 0, fmt.Errorf("grant of %s by %s rests on a grant to %s",
			g.block, g.grantor.Short(), parent.grant.owner.Short())
	case !covers(parent.grant.block, g.block):
		return 0, fmt.Errorf("grant of %s rests on a grant of %s", g.block, parent.grant.block)
	case parent.grant.view != g.view:
		return 0, fmt.Errorf("grant of %s in view %d rests on view %d", g.block, g.view, parent.grant.view)
	case parent.grant.seq >= g.seq:
		return 0, fmt.Errorf("grant of %s: seq %d does not follow %d", g.block, g.seq, parent.grant.seq)
	case parent.depth >= MaxDepth:
		return 0, fmt.Errorf("grant of %s: chain longer than %d", g.block, MaxDepth)
	}
	return parent.depth + 1, nil
}

// checkTakeover compares a takeover with the record that it rests on, nil when that is missing.
func checkTakeover(g *Grant, v *View) error {
	switch {
	case v == nil:
		return fmt.Errorf("takeover of %s rests on a view record that is not proven", g.block)
	case v.number != g.view || v.writer != g.grantor:
		return fmt.Errorf("takeover of %s by %s in view %d rests on view %d of %s",
			g.block, g.grantor.Short(), g.view, v.number, v.writer.Short())
	case !v.Names(g.from):
		return fmt.Errorf("takeover of %s from %s, whom view %d does not remove", g.block, g.from.Short(), v.number)
	case v.Names(g.owner):
		return fmt.Errorf("takeover of %s for %s, whom view %d removes", g.block, g.owner.Short(), v.number)
	}
	return nil
}

func covers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// byPosition is the canonical order of grants: by address, larger blocks first, then as registers are ordered.
func byPosition(g, h *Grant) int {
	return cmp.Or(g.block.Addr().Compare(h.block.Addr()), cmp.Compare(g.block.Bits(), h.block.Bits()), compare(g, h))
}
