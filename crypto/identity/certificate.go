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

// Application is the joiner's half of a certificate: "this node key enters the cluster of this root with this token",
// signed by both keys. It is bound to no session, so that it can stand inside the certificate; the session's proof is
// the join protocol's.
type Application struct {
	envelope
	Root  Fingerprint
	Node  ed25519.PublicKey
	Token ed25519.PublicKey // the token's one-off key; the founder applies with the root key itself
	Name  string            // chosen by the operator; may be empty
}

const (
	applicationRoot  = 1
	applicationNode  = 2
	applicationToken = 3
	applicationName  = 4
)

// Apply makes an application.
func Apply(root Fingerprint, node, token Key, name string) (*Application, error) {
	body := tlv.Append(nil, applicationRoot, root[:])
	body = tlv.Append(body, applicationNode, node.Public())
	body = tlv.Append(body, applicationToken, token.Public())
	body = appendName(body, applicationName, name)
	a, err := ParseApplication(seal(KindApplication, body, node, token))
	if err != nil {
		return nil, fmt.Errorf("make application: %w", err)
	}
	return a, nil
}

// ParseApplication reads what Raw gave.
func ParseApplication(raw []byte) (*Application, error) {
	e, err := parseEnvelope(KindApplication, raw)
	if err != nil {
		return nil, err
	}
	a := &Application{
		envelope: e,
		Node:     make(ed25519.PublicKey, ed25519.PublicKeySize),
		Token:    make(ed25519.PublicKey, ed25519.PublicKeySize),
	}
	r := tlv.NewReader(e.body)
	r.Require(applicationRoot, applicationNode, applicationToken)
	r.Copy(applicationRoot, a.Root[:])
	r.Copy(applicationNode, a.Node)
	r.Copy(applicationToken, a.Token)
	a.Name = readName(r, applicationName)
	if err := r.Err(); err != nil {
		return nil, e.malformed(err)
	}
	return a, nil
}

// ID is the NodeID that applies.
func (a *Application) ID() peer.ID { return IDOf(a.Node) }

// Invitation is the name of the invitation that it uses.
func (a *Application) Invitation() ItemID { return InvitationID(a.Token) }

// Verify checks that both keys signed and that it is meant for this root. It says nothing about the token: see Admits.
func (a *Application) Verify(root ed25519.PublicKey) error {
	if a.Root != FingerprintOf(root) {
		return fmt.Errorf("verify application: %w", ErrRoot)
	}
	if err := a.verify(0, a.Node); err != nil {
		return err
	}
	return a.verify(1, a.Token)
}

// Certificate makes a node a member, for the life of its key.
type Certificate struct {
	envelope
	Delegation  *Delegation // of the issuer; nil when the root signed
	Application *Application
	Invitation  *Invitation // nil in the founder's
	JoinSeq     uint64      // seniority: the founder has 0, later members more
	Ephemeral   bool        // a member without a vote
	Created     time.Time
}

const (
	certificateApplication = 2
	certificateInvitation  = 3
	certificateJoinSeq     = 4
	certificateEphemeral   = 5
	certificateCreated     = 6
)

// Found makes the founder's certificate.
func Found(root, node Key, name string, at time.Time) (*Certificate, error) {
	a, err := Apply(FingerprintOf(root.Public()), node, root, name)
	if err != nil {
		return nil, err
	}
	return Issuer{Key: root}.certify(a, nil, 0, at)
}

// Certify countersigns an application. The caller has checked it, the invitation's terms and the quorum.
func (i Issuer) Certify(a *Application, inv *Invitation, joinSeq uint64, at time.Time) (*Certificate, error) {
	if inv == nil || joinSeq == 0 {
		return nil, errors.New("make certificate: only the founder joins without invitation")
	}
	return i.certify(a, inv, joinSeq, at)
}

func (i Issuer) certify(a *Application, inv *Invitation, joinSeq uint64, at time.Time) (*Certificate, error) {
	body := i.append(nil)
	body = tlv.Append(body, certificateApplication, a.Raw())
	if inv != nil {
		body = tlv.Append(body, certificateInvitation, inv.Raw())
	}
	body = tlv.AppendUint64(body, certificateJoinSeq, joinSeq)
	body = tlv.AppendBool(body, certificateEphemeral, inv != nil && inv.Ephemeral)
	body = appendTime(body, certificateCreated, at)
	c, err := ParseCertificate(seal(KindCertificate, body, i.Key))
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	return c, nil
}

// ParseCertificate reads what Raw gave.
func ParseCertificate(raw []byte) (*Certificate, error) {
	e, err := parseEnvelope(KindCertificate, raw)
	if err != nil {
		return nil, err
	}
	c := &Certificate{envelope: e}
	r := tlv.NewReader(e.body)
	r.Require(certificateApplication, certificateJoinSeq)
	c.Delegation = readDelegation(r)
	if c.Application, err = ParseApplication(r.Bytes(certificateApplication, MaxItem)); err != nil {
		r.Fail(err)
	}
	if r.Has(certificateInvitation) {
		if c.Invitation, err = ParseInvitation(r.Bytes(certificateInvitation, MaxItem)); err != nil {
			r.Fail(err)
		}
	}
	c.JoinSeq = r.Uint64(certificateJoinSeq)
	c.Ephemeral = r.Bool(certificateEphemeral)
	c.Created = readTime(r, certificateCreated)
	if err := r.Err(); err != nil {
		return nil, e.malformed(err)
	}
	return c, nil
}

// ID is the member's NodeID.
func (c *Certificate) ID() peer.ID { return c.Application.ID() }

// Public is the member's node key.
func (c *Certificate) Public() ed25519.PublicKey { return c.Application.Node }

// Name is what the operator called the node when it joined; may be empty.
func (c *Certificate) Name() string { return c.Application.Name }

// Founder reports whether this is a founder's certificate. Whether it is the founder of a given cluster, that
// Cluster.Founder decides.
func (c *Certificate) Founder() bool { return c.Invitation == nil }

// Voter is the member's part in quorums; false for ephemeral members.
func (c *Certificate) Voter() (peer.Voter, bool) {
	return peer.Voter{ID: c.ID(), JoinSeq: c.JoinSeq}, !c.Ephemeral
}

// Verify checks the whole chain: both signatures of the application, that the invitation is for its token, and that
// invitation and certificate were signed by the root or by issuers whom it delegated.
func (c *Certificate) Verify(root ed25519.PublicKey) error {
	if err := c.Application.Verify(root); err != nil {
		return fmt.Errorf("verify certificate: %w", err)
	}
	bad := func(why string) error { return fmt.Errorf("verify certificate: %w: %s", ErrMalformed, why) }
	if c.Founder() {
		switch {
		case !root.Equal(c.Application.Token):
			return bad("no invitation, and the root did not apply")
		case c.Delegation != nil || c.JoinSeq != 0 || c.Ephemeral:
			return bad("no invitation, but not the founder's either")
		}
		return c.verifyIssued(root, nil)
	}
	switch {
	case !c.Invitation.Public.Equal(c.Application.Token):
		return bad("the invitation is for another token")
	case c.JoinSeq == 0:
		return bad("only the founder has join sequence 0")
	case c.Ephemeral != c.Invitation.Ephemeral:
		return bad("its vote is not what the invitation says")
	}
	if err := c.Invitation.Verify(root); err != nil {
		return fmt.Errorf("verify certificate: %w", err)
	}
	return c.verifyIssued(root, c.Delegation)
}

// Compare orders certificates of one node: a join that was interrupted and repeated can leave two. Every roster keeps
// the smallest.
func (c *Certificate) Compare(other *Certificate) int {
	if n := cmp.Compare(c.JoinSeq, other.JoinSeq); n != 0 {
		return n
	}
	return bytes.Compare(c.Raw(), other.Raw())
}
