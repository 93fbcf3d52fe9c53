package identity

import (
	"crypto/ed25519"
	"fmt"
	"time"

	"weft/crypto/tlv"
)

// Revocation ends an invitation (by any issuer) or a delegation (by the root only). It admits no return: what was
// revoked is issued anew under another ID. Members that were admitted before stay.
type Revocation struct {
	envelope
	Delegation *Delegation // of the issuer; nil when the root signed
	Of         Kind        // KindInvitation or KindDelegation
	Target     ItemID
	Created    time.Time
}

const (
	revocationOf      = 2
	revocationTarget  = 3
	revocationCreated = 4
)

// Revoke signs a revocation.
func (i Issuer) Revoke(of Kind, target ItemID, at time.Time) (*Revocation, error) {
	body := i.append(nil)
	body = tlv.AppendUint8(body, revocationOf, uint8(of))
	body = tlv.Append(body, revocationTarget, target[:])
	body = appendTime(body, revocationCreated, at)
	r, err := ParseRevocation(seal(KindRevocation, body, i.Key))
	if err != nil {
		return nil, fmt.Errorf("make revocation: %w", err)
	}
	return r, nil
}

// ParseRevocation reads what Raw gave.
func ParseRevocation(raw []byte) (*Revocation, error) {
	e, err := parseEnvelope(KindRevocation, raw)
	if err != nil {
		return nil, err
	}
	rev := &Revocation{envelope: e}
	r := tlv.NewReader(e.body)
	r.Require(revocationOf, revocationTarget)
	rev.Delegation = readDelegation(r)
	rev.Of = Kind(r.Uint8(revocationOf))
	r.Copy(revocationTarget, rev.Target[:])
	rev.Created = readTime(r, revocationCreated)
	switch {
	case rev.Of != KindInvitation && rev.Of != KindDelegation:
		r.Fail(fmt.Errorf("a %s cannot be revoked", rev.Of))
	case rev.Of == KindDelegation && rev.Delegation != nil:
		r.Fail(fmt.Errorf("a delegation revoked by an issuer"))
	}
	if err := r.Err(); err != nil {
		return nil, e.malformed(err)
	}
	return rev, nil
}

// Verify checks the signature of the issuer or root.
func (rev *Revocation) Verify(root ed25519.PublicKey) error {
	return rev.verifyIssued(root, rev.Delegation)
}
