package identity

import (
	"crypto/ed25519"
	"encoding/base32"
	"fmt"
	"time"

	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// ItemID names an invitation (by its public key) or a delegation (by its content).
type ItemID [16]byte

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// String is 26 lower-case base32 characters.
func (id ItemID) String() string { return idEncoding.EncodeToString(id[:]) }

// Short is what people compare by eye.
func (id ItemID) Short() string { return id.String()[:8] }

// ParseItemID reads what String wrote.
func ParseItemID(s string) (ItemID, error) {
	b, err := idEncoding.DecodeString(s)
	if err != nil || len(b) != len(ItemID{}) || idEncoding.EncodeToString(b) != s {
		return ItemID{}, fmt.Errorf("parse id %q: want 26 characters of a-z and 2-7", s)
	}
	return ItemID(b), nil
}

// Delegation lets a node issue invitations and certificates in the root's name.
type Delegation struct {
	envelope
	Public  ed25519.PublicKey // the issuer's node key
	Created time.Time
}

const (
	delegationPublic  = 1
	delegationCreated = 2
)

// Delegate signs a delegation with the root key.
func Delegate(root Key, issuer ed25519.PublicKey, at time.Time) (*Delegation, error) {
	body := tlv.Append(nil, delegationPublic, issuer)
	body = appendTime(body, delegationCreated, at)
	return ParseDelegation(seal(KindDelegation, body, root))
}

// ParseDelegation reads what Raw gave.
func ParseDelegation(raw []byte) (*Delegation, error) {
	e, err := parseEnvelope(KindDelegation, raw)
	if err != nil {
		return nil, err
	}
	d := &Delegation{envelope: e, Public: make(ed25519.PublicKey, ed25519.PublicKeySize)}
	r := tlv.NewReader(e.body)
	r.Require(delegationPublic)
	r.Copy(delegationPublic, d.Public)
	d.Created = readTime(r, delegationCreated)
	if err := r.Err(); err != nil {
		return nil, e.malformed(err)
	}
	return d, nil
}

// Issuer is the NodeID that may issue.
func (d *Delegation) Issuer() peer.ID { return IDOf(d.Public) }

// ID names the delegation, for its revocation.
func (d *Delegation) ID() ItemID {
	h := digest("weft delegation id", d.signed)
	return ItemID(h[:len(ItemID{})])
}

// Verify checks the root's signature.
func (d *Delegation) Verify(root ed25519.PublicKey) error { return d.verify(0, root) }

// Issuer signs invitations, revocations and certificates: a node key with its delegation, or the root key with none.
type Issuer struct {
	Key        Key
	Delegation *Delegation
}

// tagDelegation is the first field of everything that an issuer signs; without it the root has signed.
const tagDelegation = 1

func (i Issuer) append(b []byte) []byte {
	if i.Delegation == nil {
		return b
	}
	return tlv.Append(b, tagDelegation, i.Delegation.Raw())
}

func readDelegation(r *tlv.Reader) *Delegation {
	if !r.Has(tagDelegation) {
		return nil
	}
	d, err := ParseDelegation(r.Bytes(tagDelegation, MaxItem))
	if err != nil {
		r.Fail(err)
	}
	return d
}

// verifyIssued checks a signature by the root, or by an issuer whom the root delegated.
func (e *envelope) verifyIssued(root ed25519.PublicKey, d *Delegation) error {
	if d == nil {
		return e.verify(0, root)
	}
	if err := d.Verify(root); err != nil {
		return fmt.Errorf("verify %s: %w", e.kind, err)
	}
	return e.verify(0, d.Public)
}
