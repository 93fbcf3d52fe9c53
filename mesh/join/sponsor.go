package join

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft/crypto/identity"
	"weft/mesh/lobby"
	"weft/mesh/peer"
)

// Methods of calls between members.
const (
	MethodForward  = "join.forward"
	MethodAsk      = "join.ack"
	MethodRelease  = "join.release"
	MethodCommit   = "join.commit"
	MethodDelegate = "join.delegate"
)

// Deadlines and limits of members.
const (
	DefaultIssuers = 3 // that get a delegation by themselves, the founder included

	requestTimeout = 10 * time.Second // for the joiner's request to arrive
	serveTimeout   = 50 * time.Second // for the whole answer: less than JoinTimeout
	issueTimeout   = 30 * time.Second // for an issuer's work; much less than PromiseLife
	voteTimeout    = 5 * time.Second  // for a voter's answer
	forwardStagger = 3 * time.Second  // before the next issuer is asked beside a silent one
	commitGrace    = 250 * time.Millisecond
	startGrace     = 20 * time.Second // for a new voter to begin to answer
	maxQuiet       = 32               // joins of nodes without a vote under way at one issuer
)

// Roster is what the members know about each other: signed facts that only grow. Package mesh has one.
type Roster interface {
	Certificate(peer.ID) (*identity.Certificate, bool)
	Voters() []peer.Voter
	Issuers() []peer.ID
	Delegation(peer.ID) (*identity.Delegation, bool)
	Invitation(identity.ItemID) (*identity.Invitation, bool)
	JoinedWith(identity.ItemID) []peer.ID
	Revoked(identity.Kind, identity.ItemID) bool
	// Items is everything, in signed form.
	Items() [][]byte
	// AddRaw verifies items against the root and keeps them; when it returns they survive a crash.
	AddRaw(items ...[]byte) error
}

// SponsorConfig says who this member is and what it works with.
type SponsorConfig struct {
	Key     identity.Key
	Cluster *identity.Cluster
	Roster  Roster
	Store   Store
	// Call asks another member; the other end gives the request to the handler that Handlers lists for the method.
	Call func(ctx context.Context, to peer.ID, method string, req []byte) ([]byte, error)

	RootKey func() identity.Key // the zero Key while the root key is not on this node; nil: never is
	Issuers int                 // how many members get a delegation by themselves; 0: DefaultIssuers
	Alive   func(peer.ID) bool  // membership's opinion, to ask the likely ones first; nil: all are
	// Removed says whether a node was removed and why; nil: nobody was.
	Removed func(peer.ID) (why identity.Reason, removed bool)
	Records func() []byte // snapshots that a joiner starts with; nil: none
	Ring    func() []byte
	Now     func() time.Time // for expiry; nil: time.Now
	Build   string
	Log     *slog.Logger
}

// Sponsor is a member's part in the joins of others: it answers joiners, issues certificates when it holds a delegation,
// and votes. It starts nothing by itself; every method returns when its work has ended.
type Sponsor struct {
	cfg    SponsorConfig
	self   peer.ID
	ledger *ledger

	voting chan struct{} // one join of a voter at a time: see turn
	quiet  chan struct{}

	mu   sync.Mutex
	busy map[peer.ID]chan struct{} // nodes whose application is worked on; closed at its end

	lines lobby.Lines // about joiners, who may be anybody
}

// NewSponsor checks cfg and loads the promises made before a restart.
func NewSponsor(cfg SponsorConfig) (*Sponsor, error) {
	switch {
	case cfg.Key.IsZero() || cfg.Cluster == nil:
		return nil, errors.New("make sponsor: no key or no cluster")
	case cfg.Roster == nil || cfg.Store == nil || cfg.Call == nil || cfg.Log == nil:
		return nil, errors.New("make sponsor: Roster, Store, Call and Log are required")
	}
	if cfg.RootKey == nil {
		cfg.RootKey = func() identity.Key { return identity.Key{} }
	}
	if cfg.Issuers == 0 {
		cfg.Issuers = DefaultIssuers
	}
	if cfg.Alive == nil {
		cfg.Alive = func(peer.ID) bool { return true }
	}
	if cfg.Removed == nil {
		cfg.Removed = func(peer.ID) (identity.Reason, bool) { return 0, false }
	}
	if cfg.Records == nil {
		cfg.Records = func() []byte { return nil }
	}
	if cfg.Ring == nil {
		cfg.Ring = func() []byte { return nil }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	l, err := openLedger(cfg.Store, cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("make sponsor: %w", err)
	}
	return &Sponsor{
		cfg:    cfg,
		self:   cfg.Key.ID(),
		ledger: l,
		voting: make(chan struct{}, 1),
		quiet:  make(chan struct{}, maxQuiet),
		busy:   map[peer.ID]chan struct{}{},
	}, nil
}

// Handlers are what this member answers to others, by method.
func (s *Sponsor) Handlers() map[string]func(ctx context.Context, from peer.ID, req []byte) ([]byte, error) {
	return map[string]func(context.Context, peer.ID, []byte) ([]byte, error){
		MethodForward:  s.handleForward,
		MethodAsk:      s.handleAsk,
		MethodRelease:  s.handleRelease,
		MethodCommit:   s.handleCommit,
		MethodDelegate: s.handleDelegate,
	}
}

// Serve speaks with one joiner; it fits circuit.Handlers, where known is explained.
func (s *Sponsor) Serve(ctx context.Context, conn *tls.Conn, from netip.AddrPort, known func() bool) {
	ctx, cancel := context.WithTimeout(ctx, serveTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.NetConn().Close() })()

	q, err := s.readRequest(conn)
	if err != nil {
		s.lines.Logger(s.cfg.Log, time.Now()).Info("refuse join request", "endpoint", from, "err", err)
		_ = writeFrame(conn, frameRefusal, errInvalid(err).append(nil))
		return
	}
	if !known() {
		_ = writeFrame(conn, frameRefusal, errBusy(s.name(s.self)+" has no room for one more").append(nil))
		return
	}
	log := s.cfg.Log.With("peer", q.application.ID(), "name", q.application.Name, "endpoint", from)
	cert, err := s.admit(ctx, q.application)
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			s.lines.Logger(log, time.Now()).Warn("admit node", "err", err)
			e = errFailed(s.name(s.self))
		}
		s.lines.Logger(log, time.Now()).Info("refuse node", "code", e.Code, "err", e)
		e.evidence = nil
		_ = writeFrame(conn, frameRefusal, e.append(nil))
		return
	}
	log.Info("admit node", "build", q.build)
	if err := s.welcome(conn, cert, from); err != nil {
		log.Info("send welcome", "err", err)
	}
}

func (s *Sponsor) readRequest(conn *tls.Conn) (*request, error) {
	conn.SetReadDeadline(time.Now().Add(requestTimeout))
	defer conn.SetReadDeadline(time.Time{})
	kind, body, err := readFrame(conn, maxRequest)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read join request: %w", err)
	case kind != frameRequest:
		return nil, fmt.Errorf("read join request: a frame of type %d", kind)
	}
	q, err := parseRequest(body)
	if err != nil {
		return nil, err
	}
	return q, q.verify(conn.ConnectionState())
}

// admit brings an application to an issuer and the certificate back, into the roster of this member.
func (s *Sponsor) admit(ctx context.Context, a *identity.Application) (*identity.Certificate, error) {
	if err := a.Verify(s.cfg.Cluster.Root); err != nil {
		return nil, errInvalid(err)
	}
	if _, removed := s.cfg.Removed(s.self); removed {
		return nil, errNoSponsor(s.name(s.self))
	}
	if cert, e := s.known(a); cert != nil || e != nil {
		return cert, orNil(e)
	}
	inv, ok := s.cfg.Roster.Invitation(a.Invitation())
	if !ok {
		return nil, errUnknown(s.name(s.self))
	}
	if e := s.judge(a, inv); e != nil {
		return nil, e
	}
	var ans *issued
	var err error
	if _, ok := s.issuer(); ok {
		ans, err = s.issue(ctx, a, inv)
	} else {
		ans, err = s.forward(ctx, a, inv)
	}
	if err != nil {
		return nil, err
	}
	// The roster is asked again: of two certificates for one node it keeps the older.
	if err := s.cfg.Roster.AddRaw(append(slices.Clone(ans.items), ans.certificate.Raw())...); err != nil {
		return nil, err
	}
	if cert, ok := s.cfg.Roster.Certificate(a.ID()); ok {
		return cert, nil
	}
	return ans.certificate, nil
}

// known answers for a node that has a certificate, or can never get one.
func (s *Sponsor) known(a *identity.Application) (*identity.Certificate, *Error) {
	if why, removed := s.cfg.Removed(a.ID()); removed {
		return nil, errRemoved(why, s.name(s.self))
	}
	cert, ok := s.cfg.Roster.Certificate(a.ID())
	switch {
	case !ok:
		return nil, nil
	case !cert.Public().Equal(a.Node): // two keys with one hash: nobody takes over a member's name
		return nil, errInvalid(errors.New("the NodeID belongs to another key"))
	}
	return cert, nil
}

// judge holds an invitation against the clock and the roster of this member. Uses are counted by the voters.
func (s *Sponsor) judge(a *identity.Application, inv *identity.Invitation) *Error {
	by := s.name(s.self)
	if why, removed := s.cfg.Removed(a.ID()); removed {
		return errRemoved(why, by)
	}
	// Who comes back applies with its former key. The invitation came with the removal, whose reason may have changed.
	if why, removed := s.cfg.Removed(identity.IDOf(inv.Public)); removed && why != identity.Silence {
		return errRemoved(why, by)
	}
	switch {
	case s.cfg.Roster.Revoked(identity.KindInvitation, inv.ID()):
		return errRevoked(by)
	case inv.Expired(s.cfg.Now()):
		return errExpired(inv, by)
	}
	return nil
}

// forward asks the issuers, the living and senior ones first, until one has an answer.
func (s *Sponsor) forward(ctx context.Context, a *identity.Application, inv *identity.Invitation) (*issued, error) {
	issuers := slices.DeleteFunc(s.cfg.Roster.Issuers(), func(id peer.ID) bool { return id == s.self })
	slices.SortStableFunc(issuers, func(x, y peer.ID) int {
		if ax, ay := s.cfg.Alive(x), s.cfg.Alive(y); ax != ay {
			if ax {
				return -1
			}
			return 1
		}
		return bySeniority(peer.Voter{ID: x, JoinSeq: s.seniority(x)}, peer.Voter{ID: y, JoinSeq: s.seniority(y)})
	})
	var tried []string
	for _, id := range issuers {
		tried = append(tried, s.name(id))
	}
	body := (&forward{a, inv}).append(nil)
	var best *Error
	answers := canvass(ctx, issuers, forwardStagger, func(ctx context.Context, id peer.ID) (*issued, error) {
		ctx, cancel := context.WithTimeout(ctx, issueTimeout+voteTimeout)
		defer cancel()
		b, err := s.call(ctx, id, MethodForward, body)
		if err != nil {
			return nil, err
		}
		return parseIssued(b)
	})
	for ans := range answers {
		var e *Error
		switch {
		case ans.err == nil:
			if err := s.checkIssued(a, ans.value); err != nil {
				s.cfg.Log.Warn("issuer answered nonsense", "peer", ans.from, "err", err)
				continue
			}
			return ans.value, nil
		case errors.As(ans.err, &e) && e.final():
			return nil, e
		case e != nil:
			best = e
		default:
			s.cfg.Log.Info("forward application", "peer", ans.from, "err", ans.err)
		}
	}
	if best != nil {
		return nil, best
	}
	return nil, errNoIssuer(tried)
}

// checkIssued holds an issuer's answer against what was asked.
func (s *Sponsor) checkIssued(a *identity.Application, ans *issued) error {
	if err := ans.certificate.Verify(s.cfg.Cluster.Root); err != nil {
		return err
	}
	if !ans.certificate.Public().Equal(a.Node) {
		return errors.New("the certificate is for another node")
	}
	return nil
}

func (s *Sponsor) welcome(conn *tls.Conn, cert *identity.Certificate, from netip.AddrPort) error {
	w := welcomed{cluster: s.cfg.Cluster, certificate: cert, observed: from, build: s.cfg.Build}
	if err := writeFrame(conn, frameWelcome, w.append(nil)); err != nil {
		return err
	}
	for rest := s.cfg.Roster.Items(); len(rest) > 0; {
		var body []byte
		body, rest = appendItems(nil, rest)
		if err := writeFrame(conn, frameItems, body); err != nil {
			return err
		}
	}
	for _, part := range []struct {
		kind byte
		body []byte
	}{{frameRecords, s.cfg.Records()}, {frameRing, s.cfg.Ring()}} {
		for chunk := range slices.Chunk(part.body, maxFrame/2) {
			if err := writeFrame(conn, part.kind, chunk); err != nil {
				return err
			}
		}
	}
	return writeFrame(conn, frameEnd, nil)
}

// call asks another member, or this one itself.
func (s *Sponsor) call(ctx context.Context, to peer.ID, method string, req []byte) ([]byte, error) {
	var b []byte
	var err error
	if to == s.self {
		b, err = s.Handlers()[method](ctx, s.self, req)
	} else {
		b, err = s.cfg.Call(ctx, to, method, req)
	}
	if err != nil {
		return nil, err
	}
	return parseAnswer(b)
}

// name is how people know a member.
func (s *Sponsor) name(id peer.ID) string {
	if c, ok := s.cfg.Roster.Certificate(id); ok && c.Name() != "" {
		return c.Name()
	}
	return id.Short()
}

func (s *Sponsor) seniority(id peer.ID) uint64 {
	if c, ok := s.cfg.Roster.Certificate(id); ok {
		return c.JoinSeq
	}
	return 1<<64 - 1
}

func orNil(e *Error) error {
	if e == nil {
		return nil
	}
	return e
}
