package join

import (
	"context"
	"errors"
	"fmt"

	"weft/crypto/identity"
	"weft/mesh/peer"
)

// A voter's part. Refusals travel in answers; an error of a handler means that this member could not do its part.

func (s *Sponsor) handleAsk(_ context.Context, from peer.ID, req []byte) ([]byte, error) {
	q, err := parseAsk(req)
	if err != nil {
		return no(errInvalid(err)), nil
	}
	a, err := s.vote(from, q)
	return answered(a, err)
}

// answered turns a refusal into an answer.
func answered[T interface{ append([]byte) []byte }](a T, err error) ([]byte, error) {
	var e *Error
	switch {
	case errors.As(err, &e):
		return no(e), nil
	case err != nil:
		return nil, err
	}
	return yes(a.append(nil)), nil
}

// errOut is the answer of a member that leaves: what it knows it has told others already, so it is no witness any more.
var errOut = errors.New("this member has no vote any more")

// vote checks everything about an application as if nobody had before, and promises.
func (s *Sponsor) vote(from peer.ID, q *ask) (*promised, error) {
	if _, out := s.cfg.Removed(s.self); out {
		return nil, errOut
	}
	root := s.cfg.Cluster.Root
	if err := s.checkIssuer(from, q.delegation); err != nil {
		return nil, errInvalid(err)
	}
	if err := q.forward.check(root); err != nil {
		return nil, errInvalid(err)
	}
	a, inv := q.application, q.invitation
	if own, ok := s.cfg.Roster.Invitation(inv.ID()); ok {
		inv = own
	}

	l := s.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	cert, e := s.known(a)
	if e != nil {
		return nil, e
	}
	ans := &promised{already: cert, told: s.tell(q.voters)}
	if cert != nil {
		return ans, nil
	}
	if e := s.judge(a, inv); e != nil {
		if e.Code == CodeRevoked {
			e.evidence = s.revocation(inv.ID())
		}
		return nil, e
	}
	now := s.cfg.Now()
	l.expire(now)
	if e := s.usable(a.ID(), inv); e != nil {
		return nil, e
	}
	p, again := l.promises[a.ID()]
	if !again || p.invitation != inv.ID() {
		p = promise{invitation: inv.ID(), joinSeq: s.nextSeq(), ephemeral: inv.Ephemeral}
	}
	p.issuer, p.attempt, p.made = from, q.attempt, now
	if err := l.set(a.ID(), p); err != nil {
		return nil, err
	}
	ans.joinSeq = p.joinSeq
	for id, other := range l.promises {
		if id != a.ID() && !other.ephemeral {
			ans.joining = append(ans.joining, peer.Voter{ID: id, JoinSeq: other.joinSeq})
		}
	}
	return ans, nil
}

// checkIssuer says whether from may ask for votes.
func (s *Sponsor) checkIssuer(from peer.ID, d *identity.Delegation) error {
	_, removed := s.cfg.Removed(from)
	switch {
	case removed:
		return fmt.Errorf("%s was removed", s.name(from))
	case d.Issuer() != from:
		return fmt.Errorf("%s shows a delegation of %s", from.Short(), d.Issuer().Short())
	case s.cfg.Roster.Revoked(identity.KindDelegation, d.ID()):
		return fmt.Errorf("the delegation of %s was revoked", s.name(from))
	}
	return d.Verify(s.cfg.Cluster.Root)
}

// check verifies the signatures of an application and the invitation that it uses.
func (q *forward) check(root []byte) error {
	if err := q.application.Verify(root); err != nil {
		return err
	}
	if !q.invitation.Public.Equal(q.application.Token) {
		return errors.New("the invitation is for another token")
	}
	return q.invitation.Verify(root)
}

// usable counts the members that came with an invitation and those that were promised it. It is called with the ledger's
// lock held.
func (s *Sponsor) usable(node peer.ID, inv *identity.Invitation) *Error {
	if inv.Uses == 0 {
		return nil
	}
	users := peer.SetOf(s.cfg.Roster.JoinedWith(inv.ID())...)
	if uint64(len(users)) >= uint64(inv.Uses) && !users.Has(node) {
		if former := identity.IDOf(inv.Public); len(users) > 0 {
			if _, removed := s.cfg.Removed(former); removed {
				return errReturned(s.name(users.Sorted()[0]))
			}
		}
		return errUsedUp(inv)
	}
	for id, p := range s.ledger.promises {
		if p.invitation == inv.ID() {
			users.Add(id)
		}
	}
	if uint64(len(users)) >= uint64(inv.Uses) && !users.Has(node) {
		return errBusy("another node is joining with the last use of the token")
	}
	return nil
}

// Join sequences count voters. They would end at the largest number if whoever lies could make them leap, and with them all
// joins for ever.
const (
	maxSeq  = 1 << 62 // what is beyond counts for nothing
	maxLeap = 1 << 20 // by how much a voter may know more of them than the issuer that asks it
)

// nextSeq is above all join sequences that this member knows or has promised. It is called with the ledger's lock held.
func (s *Sponsor) nextSeq() uint64 {
	var highest uint64
	count := func(seq uint64) {
		if seq <= maxSeq {
			highest = max(highest, seq)
		}
	}
	for _, v := range s.cfg.Roster.Voters() {
		count(v.JoinSeq)
	}
	for _, p := range s.ledger.promises {
		count(p.joinSeq)
	}
	return highest + 1
}

// tell lists certificates of voters that another member does not know.
func (s *Sponsor) tell(known []peer.ID) [][]byte {
	has := peer.SetOf(known...)
	var told [][]byte
	for _, v := range s.cfg.Roster.Voters() {
		if cert, ok := s.cfg.Roster.Certificate(v.ID); ok && !has.Has(v.ID) && len(told) < maxTold {
			told = append(told, cert.Raw())
		}
	}
	return told
}

// revocation finds the signed item; it is a rare question, so nothing indexes it.
func (s *Sponsor) revocation(of identity.ItemID) []byte {
	for _, raw := range s.cfg.Roster.Items() {
		it, err := identity.Parse(raw)
		if err != nil {
			continue
		}
		if r, ok := it.(*identity.Revocation); ok && r.Of == identity.KindInvitation && r.Target == of {
			return raw
		}
	}
	return nil
}

func (s *Sponsor) handleRelease(_ context.Context, from peer.ID, req []byte) ([]byte, error) {
	q, err := parseRelease(req)
	if err != nil {
		return no(errInvalid(err)), nil
	}
	l := s.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	if p, ok := l.promises[q.node]; ok && p.issuer == from && p.attempt == q.attempt {
		if err := l.drop(q.node); err != nil {
			return nil, err
		}
	}
	return yes(nil), nil
}

func (s *Sponsor) handleCommit(_ context.Context, from peer.ID, req []byte) ([]byte, error) {
	q, err := parseIssued(req)
	if err != nil {
		return no(errInvalid(err)), nil
	}
	if err := s.commit(q); err != nil {
		if e, ok := errors.AsType[*Error](err); ok {
			return no(e), nil
		}
		return nil, err
	}
	s.cfg.Log.Debug("learn member", "peer", q.certificate.ID(), "name", q.certificate.Name(), "from", from)
	return yes(nil), nil
}

// commit takes a certificate into the roster. A certificate that this member promised always fits; one that it did not
// promise must not exceed the uses, which can only happen when the issuer was stopped for longer than a promise lives.
func (s *Sponsor) commit(q *issued) error {
	if _, out := s.cfg.Removed(s.self); out {
		return errOut
	}
	cert := q.certificate
	if err := cert.Verify(s.cfg.Cluster.Root); err != nil {
		return errInvalid(err)
	}
	if cert.Founder() {
		return errInvalid(errors.New("a founder does not join"))
	}
	if d := cert.Delegation; d != nil && s.cfg.Roster.Revoked(identity.KindDelegation, d.ID()) {
		return errInvalid(errors.New("the issuer's delegation was revoked"))
	}
	l := s.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	known, e := s.known(cert.Application)
	if e != nil {
		return e
	}
	p, promised := l.promises[cert.ID()]
	if known == nil && (!promised || p.invitation != cert.Invitation.ID()) {
		l.expire(s.cfg.Now())
		if e := s.usable(cert.ID(), cert.Invitation); e != nil {
			return e
		}
	}
	if err := s.cfg.Roster.AddRaw(append([][]byte{cert.Invitation.Raw(), cert.Raw()}, q.items...)...); err != nil {
		return fmt.Errorf("keep certificate: %w", err)
	}
	return l.drop(cert.ID())
}
