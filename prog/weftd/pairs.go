package weftd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"weft/crypto/psk"
	"weft/mesh/circuit"
	"weft/mesh/peer"
)

// streamPair is the kind of a circuit on which two members agree on a pair secret; see mesh.StreamGossip for the others.
const streamPair byte = 'p'

// The protocol: the dialler takes the secret of the session and asks with its name; the other end takes the same secret,
// tells its wire, and repeats the name; then the dialler tells its own wire. The answering side is ready before the side
// that will begin handshakes with the new secret.
//
//	ask     version(1)  secret's ID(8)
//	answer  version(1)  secret's ID(8)
const pairVersion = 1

const (
	pairMessage  = 1 + psk.IDSize
	pairTime     = 15 * time.Second // for one agreement
	pairLife     = 24 * time.Hour   // then it is agreed anew
	pairRetryMin = 500 * time.Millisecond
	pairRetryMax = 30 * time.Second
	pairYield    = 2 * time.Second // the member that need not begin waits this long for the other; see mayBegin
	pairsAtOnce  = 8
	pairTick     = 250 * time.Millisecond

	pairRenewYield = 10 * time.Minute // and this long for the other to renew
)

// pairs agrees on secrets with all members and keeps them in memory. Between two members:
//
//	none -> agreed (current) -> agreed anew (current, previous) -> ...
//
// Nothing is stored: a daemon that starts agrees anew, while its wire still holds what was agreed before.
type pairs struct {
	log      *slog.Logger
	self     peer.ID
	dial     func(ctx context.Context, to peer.ID, kind byte) (*circuit.Conn, error)
	members  func() []peer.Info
	tell     func(ctx context.Context) error // pushes the secrets to the wire; returns when the wire has them
	easier   func(peer.Info) int             // positive: to dial than to be dialled by; nil: nobody knows
	shuffled func(int) []int

	// Two machines may have one identity: see twin.go.
	introduce func(ctx context.Context, to peer.ID) error // an error: this one must not have a tunnel; nil: there is no other
	startOf   func(peer.ID) uint64                        // the last one of a member that was heard of; nil: nobody knows

	mu sync.Mutex // guards all below
	of map[peer.ID]*pair
}

type pair struct {
	psk.Pair
	start  uint64    // of the member, by which the current secret was agreed
	agreed time.Time // of the current secret; zero when there is none
	since  time.Time // that the member is known
	next   time.Time // not dialled before
	wait   time.Duration
	busy   bool
	again  bool // hurried while busy: what is under way began before the change
}

func newPairs(log *slog.Logger, self peer.ID) *pairs {
	return &pairs{log: log, self: self, shuffled: rand.Perm, of: map[peer.ID]*pair{}}
}

// secrets lists what was agreed with a member, newest first.
func (p *pairs) secrets(id peer.ID) []psk.Secret {
	p.mu.Lock()
	defer p.mu.Unlock()
	if of := p.of[id]; of != nil {
		return of.List()
	}
	return nil
}

// run agrees with whoever is due until ctx ends.
func (p *pairs) run(ctx context.Context) error {
	tick := time.NewTicker(pairTick)
	defer tick.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	places := make(chan struct{}, pairsAtOnce)
	for {
		for _, id := range p.due(time.Now()) {
			select {
			case places <- struct{}{}:
			default:
				p.done(id, errBusy)
				continue
			}
			wg.Go(func() {
				defer func() { <-places }()
				err := p.agree(ctx, id)
				if err != nil && ctx.Err() == nil {
					p.log.Debug("no pair secret agreed", "peer", id, "err", err)
				}
				p.done(id, err)
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// errBusy says that there was no place; the member is due still.
var errBusy = errors.New("too many agreements at once")

// due lists members that this node should dial now, in random order, and marks them busy. Members that are gone are
// forgotten.
func (p *pairs) due(now time.Time) []peer.ID {
	members := p.members()
	p.mu.Lock()
	defer p.mu.Unlock()
	known := peer.Set{}
	var due []peer.ID
	for _, i := range p.shuffled(len(members)) {
		m := members[i]
		if m.State == peer.Removed || m.ID == p.self {
			continue
		}
		known.Add(m.ID)
		of := p.of[m.ID]
		if of == nil {
			of = &pair{since: now}
			if !p.mayBegin(m) {
				of.next = now.Add(pairYield)
			}
			p.of[m.ID] = of
		}
		if of.busy || now.Before(of.next) || len(m.Endpoints) == 0 {
			continue
		}
		life := pairLife
		if p.self.Compare(m.ID) > 0 {
			life += pairRenewYield // or both would renew at once, and the secret in use be forgotten by both
		}
		if of.agreed.IsZero() || now.Sub(of.agreed) > life {
			of.busy = true
			due = append(due, m.ID)
		}
	}
	for id := range p.of {
		if !known.Has(id) && !p.of[id].busy {
			delete(p.of, id)
		}
	}
	return due
}

// mayBegin reports whether this node dials a new member at once: when it alone can, or when it has the lower ID.
func (p *pairs) mayBegin(m peer.Info) bool {
	if p.easier != nil {
		if e := p.easier(m); e != 0 {
			return e > 0
		}
	}
	return p.self.Compare(m.ID) < 0
}

// done notes how a dial went.
func (p *pairs) done(id peer.ID, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	of := p.of[id]
	again := of.again
	of.busy, of.again = false, false
	switch {
	case err == nil:
		of.wait = 0
	case again, errors.Is(err, errBusy):
	default:
		of.wait = min(max(2*of.wait, pairRetryMin), pairRetryMax)
		of.next = time.Now().Add(of.wait/2 + rand.N(of.wait))
	}
}

// hurry makes a member due at once that failed before, because something has changed.
func (p *pairs) hurry(id peer.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if of := p.of[id]; of != nil && of.agreed.IsZero() {
		of.next, of.wait, of.again = time.Time{}, 0, of.busy
	}
}

// agree dials a member and agrees on a secret.
func (p *pairs) agree(ctx context.Context, id peer.ID) error {
	ctx, cancel := context.WithTimeout(ctx, pairTime)
	defer cancel()
	conn, err := p.dial(ctx, id, streamPair)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := p.mayAgree(ctx, id); err != nil { // not before it is known to be there: it would be asked in vain
		return err
	}
	secret, err := psk.FromSession(conn.Exporter, p.self, id)
	if err != nil {
		return err
	}
	ask := pairAsk(secret)
	if _, err := conn.Write(ask); err != nil {
		return fmt.Errorf("ask for pair secret: %w", err)
	}
	answer := make([]byte, pairMessage)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return fmt.Errorf("agree on pair secret: %w", err)
	}
	if !bytes.Equal(ask, answer) {
		return errors.New("agree on pair secret: the answer names another secret")
	}
	return p.take(ctx, id, secret)
}

// serve answers a member that wants to agree. The caller closes conn.
func (p *pairs) serve(ctx context.Context, conn *circuit.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, pairTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	secret, err := psk.FromSession(conn.Exporter, p.self, conn.Peer)
	if err != nil {
		return err
	}
	ask := make([]byte, pairMessage)
	if _, err := io.ReadFull(conn, ask); err != nil {
		return fmt.Errorf("read pair secret's name: %w", err)
	}
	answer := pairAsk(secret)
	if !slices.Equal(ask, answer) {
		return errors.New("the member named another pair secret, or speaks another version")
	}
	if err := p.mayAgree(ctx, conn.Peer); err != nil {
		return err
	}
	if err := p.take(ctx, conn.Peer, secret); err != nil {
		return err
	}
	if _, err := conn.Write(answer); err != nil {
		return fmt.Errorf("answer with pair secret's name: %w", err)
	}
	return nil
}

func pairAsk(s psk.Secret) []byte {
	id := s.ID()
	return append([]byte{pairVersion}, id[:]...)
}

// mayAgree asks the member first whether it knows another machine of this identity: without a secret no tunnel of its leads here.
func (p *pairs) mayAgree(ctx context.Context, id peer.ID) error {
	if p.introduce == nil {
		return nil
	}
	return p.introduce(ctx, id)
}

// take makes the secret the current one and tells the wire. What an earlier start of the member has agreed is worth nothing any
// more: if that was another machine of one identity, it would take the tunnel back with it.
func (p *pairs) take(ctx context.Context, id peer.ID, s psk.Secret) error {
	p.mu.Lock()
	of := p.of[id]
	if of == nil {
		of = &pair{since: time.Now()}
		p.of[id] = of
	}
	if p.startOf != nil {
		if start := p.startOf(id); start != of.start {
			of.Pair, of.start = psk.Pair{}, start
		}
	}
	of.Rotate(s)
	of.agreed = time.Now()
	p.mu.Unlock()
	return p.tell(ctx)
}
