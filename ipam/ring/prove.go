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

// Verifier judges a grantor's signature: nil, an error that wraps ErrUnknownSigner, or any other error for a bad one.
type Verifier func(grantor peer.ID, msg, sig []byte) error

// Keys makes a Verifier from a look-up of the members' public keys.
func Keys(lookup func(peer.ID) (ed25519.PublicKey, bool)) Verifier {
	return func(grantor peer.ID, msg, sig []byte) error {
		pub, ok := lookup(grantor)
		if !ok {
			return fmt.Errorf("%w: %s", ErrUnknownSigner, grantor.Short())
		}
		if !identity.Verify(pub, grantDomain, msg, sig) {
			return fmt.Errorf("bad signature of %s", grantor.Short())
		}
		return nil
	}
}

// Batch is what Decode found: entries that can be read and were not judged yet.
type Batch struct {
	grants   []*Grant
	views    [][]byte
	rejected []Rejection
}

// Rejection is an entry that was left out of a merge, and why. It never hinders other entries, unless they rest on it.
type Rejection struct {
	Block netip.Prefix // zero when the entry could not be read
	Err   error
}

// Proven is a batch of which only what is proven is left: each grant is signed by its grantor, and its parent, which is
// in the batch too and proven, made that grantor the owner of the whole block. The proof uses nothing but the batch, so
// what a ring becomes does not depend on the order in which batches come.
type Proven struct {
	grants   []*Grant // parents first
	views    [][]byte
	rejected []Rejection
}

// Rejected lists what was left out, the unreadable entries of the batch first.
func (p Proven) Rejected() []Rejection { return p.rejected }

// Prove judges a batch. Signatures of grants that known reports are not checked again; known may be nil.
func (u *Universe) Prove(b *Batch, known func(ID) bool, verify Verifier) Proven {
	p := Proven{views: b.views, rejected: slices.Clone(b.rejected)}
	grants := slices.Clone(b.grants)
	// A parent has a lower seq in the same view, so this order puts it first.
	slices.SortFunc(grants, func(g, h *Grant) int { return compare(g, h) })
	proven := make(map[ID]proof, len(grants))
	for _, g := range grants {
		if _, twice := proven[g.id]; twice {
			continue
		}
		depth, err := u.link(g, proven)
		if err == nil && (known == nil || !known(g.id)) {
			err = verify(g.grantor, u.signed(g.payload), g.sig)
		}
		if err != nil {
			p.rejected = append(p.rejected, Rejection{g.block, err})
			continue
		}
		proven[g.id] = proof{g, depth}
		p.grants = append(p.grants, g)
	}
	return p
}

type proof struct {
	grant *Grant
	depth int
}

// link checks that the grantor owned the block by the grant's parent.
func (u *Universe) link(g *Grant, proven map[ID]proof) (depth int, err error) {
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

func covers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// byPosition is the canonical order of grants: by address, larger blocks first, then as registers are ordered.
func byPosition(g, h *Grant) int {
	return cmp.Or(g.block.Addr().Compare(h.block.Addr()), cmp.Compare(g.block.Bits(), h.block.Bits()), compare(g, h))
}
