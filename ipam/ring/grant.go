package ring

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
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
	parent  ID // the grant by which the grantor owns the block; zero: it is the founder
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

// Grantor is who gave it.
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
	p := tlv.AppendVersion(nil, grantVersion)
	p = tlv.AppendPrefix(p, tagBlock, block)
	if view != 0 {
		p = tlv.AppendUint64(p, tagView, view)
	}
	p = tlv.AppendUint64(p, tagSeq, seq)
	p = tlv.Append(p, tagOwner, owner[:])
	grantor := s.ID()
	p = tlv.Append(p, tagGrantor, grantor[:])
	if parent != (ID{}) {
		p = tlv.Append(p, tagParent, parent[:])
	}
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
	envelope, err := tlv.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("parse grant: %w", err)
	}
	payload, _ := envelope.Get(tagPayload)
	sig, _ := envelope.Get(tagSignature)
	if len(raw) != envelopeBytes+len(payload)+len(sig) {
		// What the signature does not cover could be changed on the way, and make two grants of one.
		return nil, errors.New("parse grant: fields beside payload and signature")
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
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("parse grant: %w", err)
	}
	switch _, _, ok := u.Range(g.block); {
	case !ok:
		return nil, fmt.Errorf("grant of %s: not a block of this cluster", g.block)
	case g.seq == 0 || g.seq > MaxSeq:
		return nil, fmt.Errorf("grant of %s: seq %d out of range", g.block, g.seq)
	case g.owner.IsZero() || g.grantor.IsZero():
		return nil, fmt.Errorf("grant of %s: without owner or grantor", g.block)
	case len(sig) == 0 || len(sig) > maxSignature:
		return nil, fmt.Errorf("grant of %s: signature of %d bytes", g.block, len(sig))
	}
	sum := sha256.Sum256(raw)
	copy(g.id[:], sum[:])
	return g, nil
}
