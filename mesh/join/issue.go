package join

import (
	"context"
	"crypto/rand"
	"errors"
	mathrand "math/rand/v2"
	"time"

	"weft/crypto/identity"
	"weft/mesh/peer"
)

// An issuer's part.

func (s *Sponsor) handleForward(ctx context.Context, _ peer.ID, req []byte) ([]byte, error) {
	q, err := parseForward(req)
	if err == nil {
		err = q.check(s.cfg.Cluster.Root)
	}
	if err != nil {
		return no(errInvalid(err)), nil
	}
	a, err := s.issue(ctx, q.application, q.invitation)
	return answered(a, err)
}

// issuer is this member as one who may sign; with the root key at hand it delegates to itself.
func (s *Sponsor) issuer() (identity.Issuer, bool) {
	d, ok := s.cfg.Roster.Delegation(s.self)
	if !ok {
		root := s.cfg.RootKey()
		if root.IsZero() {
			return identity.Issuer{}, false
		}
		var err error
		if d, err = s.delegateTo(root, s.cfg.Key.Public()); err != nil {
			s.cfg.Log.Warn("delegate to this node", "err", err)
			return identity.Issuer{}, false
		}
	}
	return identity.Issuer{Key: s.cfg.Key, Delegation: d}, true
}

// turn waits until it is this application's turn: one at a time for a node, so that repeated requests find the first
// one's certificate; one at a time for all nodes that will vote, because every one under way makes the joint quorum of
// the others larger.
func (s *Sponsor) turn(ctx context.Context, node peer.ID, ephemeral bool) (done func(), err error) {
	mine := make(chan struct{})
	for {
		s.mu.Lock()
		first := s.busy[node]
		if first == nil {
			s.busy[node] = mine
		}
		s.mu.Unlock()
		if first == nil {
			break
		}
		select {
		case <-first:
		case <-ctx.Done():
			return nil, errBusy("the same node is joining already")
		}
	}
	leave := func() {
		s.mu.Lock()
		delete(s.busy, node)
		s.mu.Unlock()
		close(mine)
	}
	places := s.voting
	if ephemeral {
		places = s.quiet
	}
	select {
	case places <- struct{}{}:
		return func() { <-places; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, errBusy("too many nodes are joining")
	}
}

// issue makes a certificate, or finds the one that was made.
func (s *Sponsor) issue(ctx context.Context, a *identity.Application, inv *identity.Invitation) (*issued, error) {
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	done, err := s.turn(ctx, a.ID(), inv.Ephemeral)
	if err != nil {
		return nil, err
	}
	defer done()
	// Two issuers that want the same use, or too many joins at once, get in each other's way: both step back, and a
	// random pause lets one go first. When many join a small cluster, members that got their vote a moment ago are still
	// starting: their answer is worth waiting for.
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		ans, err := s.round(ctx, a, inv)
		if Code(err) != CodeBusy && !(Code(err) == CodeNoQuorum && s.starting()) {
			return ans, err
		}
		select {
		case <-time.After(pause/2 + mathrand.N(pause)):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// starting reports whether the cluster has a voter so young that it may not serve yet.
func (s *Sponsor) starting() bool {
	now := s.cfg.Now()
	for _, v := range s.cfg.Roster.Voters() {
		if cert, ok := s.cfg.Roster.Certificate(v.ID); ok && now.Sub(cert.Created).Abs() < startGrace && v.ID != s.self {
			return true
		}
	}
	return false
}

// round asks the voters once.
func (s *Sponsor) round(ctx context.Context, a *identity.Application, inv *identity.Invitation) (*issued, error) {
	by, ok := s.issuer()
	if !ok {
		return nil, errNoIssuer([]string{s.name(s.self)})
	}
	cert, e := s.known(a)
	if e != nil {
		return nil, e
	}
	if cert == nil {
		var err error
		if cert, err = s.decide(ctx, by, a, inv); err != nil {
			return nil, err
		}
	}
	ans := &issued{certificate: cert, items: s.delegate(ctx, cert)}
	if err := s.spread(ctx, ans); err != nil {
		return nil, err
	}
	return ans, nil
}

// decide collects the promises of a quorum and countersigns.
func (s *Sponsor) decide(ctx context.Context, by identity.Issuer, a *identity.Application, inv *identity.Invitation) (*identity.Certificate, error) {
	if e := s.judge(a, inv); e != nil {
		return nil, e
	}
	began, clock := time.Now(), s.cfg.Now().Round(0)
	q := ask{forward: forward{a, inv}, delegation: by.Delegation}
	rand.Read(q.attempt[:])
	t := newTally(s.cfg.Roster.Voters(), a.ID(), inv.Ephemeral)
	s.ledger.mu.Lock()
	t.joinSeq = s.nextSeq()
	s.ledger.mu.Unlock()
	t.most = t.joinSeq + maxLeap
	already := s.collect(ctx, t, &q)
	if already != nil {
		return already, nil
	}
	e := s.judge(a, inv) // again: a voter may have brought a revocation
	if e == nil && !t.decided() {
		e = s.undecided(t)
	}
	// The monotonic clock stands still while a machine sleeps, and the promises expire all the same.
	if took := max(time.Since(began), s.cfg.Now().Round(0).Sub(clock)); e == nil && took > issueTimeout {
		e = errBusy("this took too long")
	}
	if e != nil {
		s.release(ctx, t, &q)
		return nil, e
	}
	return by.Certify(a, inv, t.joinSeq, s.cfg.Now())
}

// collect asks voters until the tally is decided or everybody has answered, also those that it hears of meanwhile. A
// certificate that another issuer made ends it.
func (s *Sponsor) collect(ctx context.Context, t *tally, q *ask) *identity.Certificate {
	ctx, cancel := context.WithTimeout(ctx, voteTimeout)
	defer cancel()
	asked := peer.Set{}
	for {
		var ids []peer.ID
		for id := range t.voters {
			if !asked.Has(id) {
				ids = append(ids, id)
				asked.Add(id)
			}
		}
		if len(ids) == 0 || t.decided() {
			return nil
		}
		q.voters = asked.Sorted()
		body := q.append(nil)
		for ans := range canvass(ctx, ids, 0, func(ctx context.Context, id peer.ID) (*promised, error) {
			b, err := s.call(ctx, id, MethodAsk, body)
			if err != nil {
				return nil, err
			}
			return parsePromised(b)
		}) {
			var e *Error
			switch {
			case errors.As(ans.err, &e):
				t.refused[ans.from] = e
				s.learn(t, e.evidence)
			case ans.err != nil:
				t.failed[ans.from] = ans.err
				s.cfg.Log.Info("ask voter", "peer", ans.from, "err", ans.err)
			default:
				s.learn(t, ans.value.told...)
				cert := ans.value.already
				switch {
				case cert == nil:
					t.add(ans.from, ans.value)
				case s.adopt(cert, q.application):
					return cert
				default:
					t.failed[ans.from] = errors.New("it showed a certificate that does not fit")
				}
			}
			if t.decided() {
				return nil
			}
		}
	}
}

// learn takes signed items from a voter into the roster, and voters among them into the tally.
func (s *Sponsor) learn(t *tally, items ...[]byte) {
	for _, raw := range items {
		if len(raw) == 0 {
			continue
		}
		it, err := identity.Parse(raw)
		if err == nil {
			err = s.cfg.Roster.AddRaw(raw)
		}
		if err != nil {
			s.cfg.Log.Warn("learn from voter", "err", err)
			continue
		}
		if cert, ok := it.(*identity.Certificate); ok {
			if _, removed := s.cfg.Removed(cert.ID()); !removed { // the voter has not heard of that yet
				t.learn(cert)
			}
		}
	}
}

// adopt takes over a certificate that another issuer made for the same node.
func (s *Sponsor) adopt(cert *identity.Certificate, a *identity.Application) bool {
	if !cert.Public().Equal(a.Node) || cert.Verify(s.cfg.Cluster.Root) != nil {
		return false
	}
	return s.cfg.Roster.AddRaw(cert.Raw()) == nil
}

// undecided says why the voters' answers are no quorum.
func (s *Sponsor) undecided(t *tally) *Error {
	if e := t.refusal(); e != nil {
		return e
	}
	if t.crowded() {
		return errBusy("too many nodes are joining at once")
	}
	var names []string
	for _, id := range t.missing() {
		names = append(names, s.name(id))
	}
	return errNoQuorum(t.answered(), len(t.voters), names)
}

// release takes promises back from everybody who may have made one, as far as they can be reached; the others' expire.
func (s *Sponsor) release(ctx context.Context, t *tally, q *ask) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitGrace)
	defer cancel()
	var ids []peer.ID
	for id := range t.voters {
		if t.refused[id] == nil {
			ids = append(ids, id)
		}
	}
	body := (&release{node: q.application.ID(), attempt: q.attempt}).append(nil)
	for ans := range canvass(ctx, ids, 0, func(ctx context.Context, id peer.ID) ([]byte, error) {
		return s.call(ctx, id, MethodRelease, body)
	}) {
		if ans.err != nil {
			s.cfg.Log.Debug("release promise", "peer", ans.from, "err", ans.err)
		}
	}
}

// spread puts a certificate into the rosters of a quorum, this member's first, so that a joiner that is told nothing
// because of a crash gets the same one when it asks again. The last voters get a moment; gossip reaches who missed it.
func (s *Sponsor) spread(ctx context.Context, ans *issued) error {
	if err := s.commit(ans); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, voteTimeout)
	defer cancel()
	cert := ans.certificate
	t := newTally(s.cfg.Roster.Voters(), cert.ID(), cert.Ephemeral)
	t.yes.Add(s.self)
	var ids []peer.ID
	for id := range t.voters {
		if id != s.self {
			ids = append(ids, id)
		}
	}
	var last *time.Timer
	body := ans.append(nil)
	for got := range canvass(ctx, ids, 0, func(ctx context.Context, id peer.ID) ([]byte, error) {
		return s.call(ctx, id, MethodCommit, body)
	}) {
		var e *Error
		switch {
		case errors.As(got.err, &e):
			t.refused[got.from] = e
		case got.err != nil:
			s.cfg.Log.Info("commit certificate", "peer", got.from, "err", got.err)
		default:
			t.yes.Add(got.from)
		}
		if t.decided() && last == nil {
			last = time.AfterFunc(commitGrace, cancel)
			defer last.Stop()
		}
	}
	if !t.decided() {
		return s.undecided(t)
	}
	return nil
}
