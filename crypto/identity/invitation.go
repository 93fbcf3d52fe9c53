package identity

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"weft/crypto/tlv"
)

// Invitation is the public record of a token: who holds the token's private key may become a member under its terms.
type Invitation struct {
	envelope
	Delegation *Delegation // of the issuer; nil when the root signed
	Public     ed25519.PublicKey
	Terms
}

// Terms of an invitation. Each member judges them for itself, by its own clock.
type Terms struct {
	NotAfter  time.Time // to the second
	Uses      uint32    // nodes that may join; 0 means any number
	Ephemeral bool      // they become members without a vote
	Tags      []string  // for policies; not interpreted here
	Created   time.Time
}

const (
	invitationPublic    = 2
	invitationNotAfter  = 3
	invitationUses      = 4
	invitationEphemeral = 5
	invitationTags      = 6
	invitationCreated   = 7
)

// Invite makes the record of a token with the given one-off key.
func (i Issuer) Invite(token ed25519.PublicKey, terms Terms) (*Invitation, error) {
	var tags [][]byte
	for _, t := range terms.Tags {
		tags = append(tags, []byte(t))
	}
	body := i.append(nil)
	body = tlv.Append(body, invitationPublic, token)
	body = appendTime(body, invitationNotAfter, terms.NotAfter)
	body = tlv.AppendUint32(body, invitationUses, terms.Uses)
	body = tlv.AppendBool(body, invitationEphemeral, terms.Ephemeral)
	body = tlv.AppendList(body, invitationTags, tags)
	body = appendTime(body, invitationCreated, terms.Created)
	inv, err := ParseInvitation(seal(KindInvitation, body, i.Key))
	if err != nil {
		return nil, fmt.Errorf("make invitation: %w", err)
	}
	return inv, nil
}

// ParseInvitation reads what Raw gave.
func ParseInvitation(raw []byte) (*Invitation, error) {
	e, err := parseEnvelope(KindInvitation, raw)
	if err != nil {
		return nil, err
	}
	inv := &Invitation{envelope: e, Public: make(ed25519.PublicKey, ed25519.PublicKeySize)}
	r := tlv.NewReader(e.body)
	r.Require(invitationPublic, invitationNotAfter, invitationUses)
	inv.Delegation = readDelegation(r)
	r.Copy(invitationPublic, inv.Public)
	inv.NotAfter = readTime(r, invitationNotAfter)
	inv.Uses = r.Uint32(invitationUses)
	inv.Ephemeral = r.Bool(invitationEphemeral)
	for _, t := range r.List(invitationTags, MaxTags) {
		if len(t) > MaxTag || CheckName(string(t)) != nil {
			r.Fail(errors.New("a tag that is too long or not printable"))
		}
		inv.Tags = append(inv.Tags, string(t))
	}
	inv.Created = readTime(r, invitationCreated)
	if err := r.Err(); err != nil {
		return nil, e.malformed(err)
	}
	return inv, nil
}

// ID names the invitation; whoever holds the token can compute it.
func (inv *Invitation) ID() ItemID { return InvitationID(inv.Public) }

// InvitationID is the name of the invitation for a token's public key.
func InvitationID(token ed25519.PublicKey) ItemID {
	h := digest("weft invitation id", token)
	return ItemID(h[:len(ItemID{})])
}

// Verify checks the issuer's signature and its delegation.
func (inv *Invitation) Verify(root ed25519.PublicKey) error {
	return inv.verifyIssued(root, inv.Delegation)
}

// Expired judges by the caller's clock.
func (inv *Invitation) Expired(now time.Time) bool { return !now.Before(inv.NotAfter) }
