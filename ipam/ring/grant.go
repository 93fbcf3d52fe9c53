package ring

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// The format of a grant.
const (
	grantVersion  = tlv.Version(0x10)
	grantDomain   = "weft grant"
	tagPayload    = 1 // of the envelope
	tagSignature  = 2
	tagBlock      = 1 // of the payload
	tagView       = 2 // absent: 0
	tagSeq        = 3
	tagOwner      = 4
	tagGrantor    = 5
	tagParent     = 6 // absent: none
	tagFrom       = 7 // of a takeover only
	tagRecord     = 8 // of a takeover only
	maxGrantBytes = 1024
	maxSignature  = 64

	envelopeBytes = 2 * (2 + 4) // tags and lengths
)

// MaxSeq bounds what a writer may claim, so that a number can always be followed by a higher one.
const MaxSeq = 1 << 62

// ID names a grant: the first 128 bits of the hash of its bytes, signature included.
type ID [16]byte

// Signer is the identity key of a node that grants.
type Signer interface {
	ID() peer.ID
	Sign(domain string, msg []byte) []byte
}

// Grant is one signed hand-over of an aligned block: from then on its atoms have this view, seq and owner. It is
// immutable.
type Grant struct {
	block   netip.Prefix
	view    uint64
	seq     uint64
	owner   peer.ID
	grantor peer.ID
	parent  ID      // the grant by which the grantor owns the block; zero: it is the founder, or this is a takeover
	from    peer.ID // of a takeover: the removed member whose block it was
	record  ID      // of a takeover: the view record that gives the right to it
	sig     []byte

	payload []byte
	raw     []byte
	id      ID
}

// ID names the grant.
func (g *Grant) ID() ID { return g.id }

// Block is what was handed over.
func (g *Grant) Block() netip.Prefix { return g.block }

// View is the number of the view in which it was written.
func (g *Grant) View() uint64 { return g.view }

// Seq orders the grants of an atom within a view.
func (g *Grant) Seq() uint64 { return g.seq }

// Owner is who has the block since.
func (g *Grant) Owner() peer.ID { return g.owner }

// From is the removed member that a block was taken over from; zero for what its owner gave.
func (g *Grant) From() peer.ID { return g.from }

// takeover reports whether the right to write g comes from a view record.
func (g *Grant) takeover() bool { return g.record != ID{} }

// Grantor is who gave it, or who coordinated the view in which it was taken over.
func (g *Grant) Grantor() peer.ID { return g.grantor }

// Raw is the grant as it travels and is stored. The caller does not change it.
func (g *Grant) Raw() []byte { return g.raw }

// compare is the total order of registers. nil is the initial value, lower than every grant.
func compare(g, h *Grant) int {
	switch {
	case g == h:
		return 0
	case g == nil:
		return -1
	case h == nil:
		return 1
	}
	return cmp.Or(cmp.Compare(g.view, h.view), cmp.Compare(g.seq, h.seq), bytes.Compare(g.id[:], h.id[:]))
}

// newGrant writes and signs a grant.
func newGrant(u *Universe, s Signer, block netip.Prefix, view, seq uint64, owner peer.ID, parent ID) *Grant {
	return signGrant(u, s, block, view, seq, owner, func(p []byte) []byte {
		if parent != (ID{}) {
			p = tlv.Append(p, tagParent, parent[:])
		}
		return p
	})
}

// newTakeover writes and signs a takeover, the first writing of a view.
func newTakeover(u *Universe, s Signer, block netip.Prefix, v *View, from, owner peer.ID) *Grant {
	return signGrant(u, s, block, v.number, 0, owner, func(p []byte) []byte {
		return tlv.Append(tlv.Append(p, tagFrom, from[:]), tagRecord, v.id[:])
	})
}

func signGrant(u *Universe, s Signer, block netip.Prefix, view, seq uint64, owner peer.ID, right func([]byte) []byte) *Grant {
	p := tlv.AppendVersion(nil, grantVersion)
	p = tlv.AppendPrefix(p, tagBlock, block)
	if view != 0 {
		p = tlv.AppendUint64(p, tagView, view)
	}
	p = tlv.AppendUint64(p, tagSeq, seq)
	p = tlv.Append(p, tagOwner, owner[:])
	grantor := s.ID()
	p = right(tlv.Append(p, tagGrantor, grantor[:]))
	sig := s.Sign(grantDomain, u.signed(p))
	raw := tlv.Append(nil, tagPayload, p)
	raw = tlv.Append(raw, tagSignature, sig)
	g, err := parseGrant(u, raw)
	if err != nil {
		panic(fmt.Sprintf("ring: wrote an unreadable grant: %v", err)) // a fault of this function, not of its input
	}
	return g
}

// signed is the message that a grantor signs: the cluster's ID, which does not travel, and the payload.
func (u *Universe) signed(payload []byte) []byte { return slices.Concat(u.cluster[:], payload) }

// parseGrant reads one grant and checks all that can be checked without keys and without other grants. It keeps no part
// of raw.
func parseGrant(u *Universe, raw []byte) (*Grant, error) {
	if len(raw) > maxGrantBytes {
		return nil, fmt.Errorf("grant of %d bytes, at most %d", len(raw), maxGrantBytes)
	}
	raw = slices.Clone(raw)
	payload, sig, err := openEnvelope("grant", raw)
	if err != nil {
		return nil, err
	}
	_, f, err := tlv.ParseVersioned("grant", payload, grantVersion)
	if err != nil {
		return nil, err
	}
	g := &Grant{payload: payload, sig: sig, raw: raw}
	r := tlv.NewReader(f)
	r.Require(tagBlock, tagSeq, tagOwner, tagGrantor)
	g.block = r.Prefix(tagBlock)
	g.view = r.Uint64(tagView)
	g.seq = r.Uint64(tagSeq)
	r.Copy(tagOwner, g.owner[:])
	r.Copy(tagGrantor, g.grantor[:])
	r.Copy(tagParent, g.parent[:])
	r.Copy(tagFrom, g.from[:])
	r.Copy(tagRecord, g.record[:])
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("parse grant: %w", err)
	}
	switch _, _, ok := u.Range(g.block); {
	case !ok:
		return nil, fmt.Errorf("grant of %s: not a block of this cluster", g.block)
	case (g.seq == 0) != g.takeover() || g.seq > MaxSeq:
		return nil, fmt.Errorf("grant of %s: seq %d out of range", g.block, g.seq)
	case g.view > MaxView:
		return nil, fmt.Errorf("grant of %s: view %d out of range", g.block, g.view)
	case g.takeover() == g.from.IsZero() || g.takeover() && g.parent != (ID{}):
		return nil, fmt.Errorf("grant of %s: half a takeover", g.block)
	case g.owner.IsZero() || g.grantor.IsZero():
		return nil, fmt.Errorf("grant of %s: without owner or grantor", g.block)
	}
	g.id = idOf(raw)
	return g, nil
}

// openEnvelope parts a signed entry.
func openEnvelope(what string, raw []byte) (payload, sig []byte, err error) {
	envelope, err := tlv.Parse(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("parse %s: %w", what, err)
	}
	payload, _ = envelope.Get(tagPayload)
	sig, _ = envelope.Get(tagSignature)
	if len(raw) != envelopeBytes+len(payload)+len(sig) {
		// What the signature does not cover could be changed on the way, and make two entries of one.
		return nil, nil, fmt.Errorf("parse %s: fields beside payload and signature", what)
	}
	if len(sig) == 0 || len(sig) > maxSignature {
		return nil, nil, fmt.Errorf("parse %s: signature of %d bytes", what, len(sig))
	}
	return payload, sig, nil
}
