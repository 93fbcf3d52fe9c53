package identity

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// Reason says why a node is no member any more; append-only.
type Reason uint8

// The reasons.
const (
	ByHand  Reason = 1 // an operator said so: it comes back with a new token only
	Silence Reason = 2 // nobody heard it for too long: it may come back by itself, once, as another node
	Stolen  Reason = 3 // its keys are in the wrong hands
	Left    Reason = 4 // it says so itself
)

// String is the word that people see. A reason of a newer weft is an operator's for this one.
func (r Reason) String() string {
	switch r {
	case Silence:
		return "silence"
	case Stolen:
		return "stolen"
	case Left:
		return "left"
	case ByHand:
	}
	return "by hand"
}

// weight orders reasons: of two removals the weightier holds. Those of a newer weft weigh what an operator's does, in
// every build, so that rosters end up alike.
func (r Reason) weight() int {
	switch r {
	case Silence:
		return 1
	case Left:
		return 2
	case Stolen:
		return 4
	case ByHand:
	}
	return 3
}

// Removal ends a node's membership for good: its NodeID never comes back. An issuer signs it, or the node itself when it
// leaves.
type Removal struct {
	envelope
	Delegation *Delegation // of the issuer; nil when the root or the node itself signed
	Node       peer.ID
	Reason     Reason
	Created    time.Time
	Start      uint64       // the newest start of the node that the issuer had heard of; 0 when it does not say
	leaver     *Certificate // of the node; with Left only, because the node itself signs
}

const (
	removalNode        = 2
	removalReason      = 3
	removalCreated     = 4
	removalCertificate = 5
	removalStart       = 6 // absent: 0
)

// Remove signs the removal of a node. Only the node itself says that it left: see Leave.
func (i Issuer) Remove(node peer.ID, why Reason, at time.Time) (*Removal, error) {
	return i.RemoveStart(node, 0, why, at)
}

// RemoveStart signs the removal of a node, and up to which of its starts it is meant: that one is believed to have ended.
func (i Issuer) RemoveStart(node peer.ID, start uint64, why Reason, at time.Time) (*Removal, error) {
	if why == Left {
		return nil, errors.New("make removal: only the node itself says that it left")
	}
	body := i.append(nil)
	body = tlv.Append(body, removalNode, node[:])
	body = tlv.AppendUint8(body, removalReason, uint8(why))
	body = appendTime(body, removalCreated, at)
	if start != 0 {
		body = tlv.AppendUint64(body, removalStart, start)
	}
	return finishRemoval(body, i.Key)
}

// Leave signs a node's own removal. Its certificate is part of it, so that nobody but a member can leave.
func Leave(c *Certificate, node Key, at time.Time) (*Removal, error) {
	id := node.ID()
	body := tlv.Append(nil, removalNode, id[:])
	body = tlv.AppendUint8(body, removalReason, uint8(Left))
	body = appendTime(body, removalCreated, at)
	body = tlv.Append(body, removalCertificate, c.Raw())
	return finishRemoval(body, node)
}

func finishRemoval(body []byte, key Key) (*Removal, error) {
	r, err := ParseRemoval(seal(KindRemoval, body, key))
	if err != nil {
		return nil, fmt.Errorf("make removal: %w", err)
	}
	return r, nil
}

// ParseRemoval reads what Raw gave.
func ParseRemoval(raw []byte) (*Removal, error) {
	e, err := parseEnvelope(KindRemoval, raw)
	if err != nil {
		return nil, err
	}
	rem := &Removal{envelope: e}
	r := tlv.NewReader(e.body)
	r.Require(removalNode, removalReason)
	rem.Delegation = readDelegation(r)
	r.Copy(removalNode, rem.Node[:])
	rem.Reason = Reason(r.Uint8(removalReason))
	rem.Created = readTime(r, removalCreated)
	rem.Start = r.Uint64(removalStart)
	if r.Has(removalCertificate) {
		if rem.leaver, err = ParseCertificate(r.Bytes(removalCertificate, MaxItem)); err != nil {
			r.Fail(err)
		}
	}
	switch left := rem.Reason == Left; {
	case rem.Reason == 0:
		r.Fail(errors.New("no reason"))
	case r.Err() != nil:
	case left != (rem.leaver != nil):
		r.Fail(errors.New("a node's own certificate belongs to its own word"))
	case left && rem.Delegation != nil:
		r.Fail(errors.New("an issuer says that a node left"))
	case left && rem.leaver.ID() != rem.Node:
		r.Fail(errors.New("a node says that another one left"))
	}
	if err := r.Err(); err != nil {
		return nil, e.malformed(err)
	}
	return rem, nil
}

// ID names the removal by its content.
func (r *Removal) ID() ItemID {
	h := digest("weft removal id", r.signed)
	return ItemID(h[:len(ItemID{})])
}

// Issuer is who signed: an issuer, the node itself, or nobody's ID for the root.
func (r *Removal) Issuer() peer.ID {
	switch {
	case r.Reason == Left:
		return r.Node
	case r.Delegation != nil:
		return r.Delegation.Issuer()
	}
	return peer.ID{}
}

// Verify checks the signature of the issuer or root, or of the node that left.
func (r *Removal) Verify(root ed25519.PublicKey) error {
	if r.Reason == Left {
		if err := r.leaver.Verify(root); err != nil {
			return fmt.Errorf("verify removal: %w", err)
		}
		return r.verify(0, r.leaver.Public())
	}
	return r.verifyIssued(root, r.Delegation)
}

// Compare orders removals of one node: every roster keeps the smallest, which has the weightiest reason.
func (r *Removal) Compare(other *Removal) int {
	if n := cmp.Compare(other.Reason.weight(), r.Reason.weight()); n != 0 {
		return n
	}
	return bytes.Compare(r.Raw(), other.Raw())
}
