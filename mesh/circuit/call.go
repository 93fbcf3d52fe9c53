package circuit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"weft/mesh/peer"
)

// NonceSize is the length of a Nonce.
const NonceSize = 16

// Nonce names a call that is held for a peer.
type Nonce [NonceSize]byte

// ringAgain is the pause before a call is repeated: the datagram may have been lost. It doubles.
const ringAgain = 300 * time.Millisecond

// call is held until the peer that was rung dials back.
type call struct {
	to     peer.ID
	answer chan *answer // unbuffered: who gives up leaves nothing behind
}

// answer is the circuit of a peer that was called, kept open by its server until it is closed.
type answer struct {
	quick
	once sync.Once
	done chan struct{}
}

func (a *answer) Close() error {
	err := a.quick.Close()
	a.once.Do(func() { close(a.done) })
	return err
}

// call has a peer dial this node, and returns the stream that the peer then serves.
func (c *Circuits) call(ctx context.Context, to peer.ID) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, spliceSetup)
	defer cancel()
	var n Nonce
	_, _ = rand.Read(n[:]) // never fails
	held := &call{to: to, answer: make(chan *answer)}
	c.mu.Lock()
	if len(c.held) >= MaxSplices {
		c.mu.Unlock()
		return nil, fmt.Errorf("call %s: too many calls", to.Short())
	}
	c.held[n] = held
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.held, n)
	}()
	again := ringAgain
	for {
		if err := c.cfg.Ring(to, n); err != nil {
			return nil, fmt.Errorf("call %s: %w", to.Short(), err)
		}
		select {
		case a := <-held.answer:
			return a, nil
		case <-time.After(again):
			again *= 2
		case <-ctx.Done():
			return nil, fmt.Errorf("call %s: it does not answer: %w", to.Short(), context.Cause(ctx))
		}
	}
}

// dialCalled opens a circuit to a peer that dials this node for it.
func (c *Circuits) dialCalled(ctx context.Context, to peer.ID, kind byte) (net.Conn, error) {
	shown, err := c.identify()
	if err != nil {
		return nil, err
	}
	raw, err := c.call(ctx, to)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, HandshakeTimeout)
	defer cancel()
	conn, err := c.greet(ctx, raw, shown, to, kind)
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("greet it after it was called: %w", err)
	}
	c.reached(to, false)
	return conn, nil
}

// answered gives the circuit of a peer that was called to who called it, and keeps it open.
func (s *server) answered(ctx context.Context, conn *Conn) {
	conn.SetDeadline(time.Now().Add(HandshakeTimeout))
	var head [1 + NonceSize]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil || head[0] != spliceVersion {
		return
	}
	s.c.mu.Lock()
	held := s.c.held[Nonce(head[1:])]
	s.c.mu.Unlock()
	if held == nil || held.to != conn.Peer {
		_, _ = conn.Write([]byte{byte(notReached)})
		return
	}
	if _, err := conn.Write([]byte{byte(joined)}); err != nil {
		return
	}
	conn.SetDeadline(time.Time{})
	a := &answer{quick: quick{conn}, done: make(chan struct{})}
	give, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	select {
	case held.answer <- a:
	case <-give.Done(): // another answer was first, or nobody waits any more
		return
	}
	select {
	case <-a.done:
	case <-ctx.Done():
	}
}

// Answer is for a Nonce that a peer rang with: it dials that peer and serves what comes. It returns at once.
func (c *Circuits) Answer(relay peer.ID, n Nonce) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server == nil {
		return errors.New("answer call: nothing is served now")
	}
	return c.server.answer(relay, n)
}

// answer is called with the lock of the Circuits held.
func (s *server) answer(relay peer.ID, n Nonce) error {
	if _, twice := s.answering[n]; twice {
		return nil // rung again
	}
	ofRelay := 0
	for _, who := range s.answering {
		if who == relay {
			ofRelay++
		}
	}
	if len(s.answering) >= MaxAnswers || ofRelay >= MaxAnswersPeer {
		return errors.New("answer call: too many at once")
	}
	s.answering[n] = relay
	s.wg.Go(func() {
		answered := sync.OnceFunc(func() {
			s.c.mu.Lock()
			defer s.c.mu.Unlock()
			delete(s.answering, n)
		})
		defer answered()
		if err := s.pickUp(s.ctx, relay, n, answered); err != nil && s.ctx.Err() == nil {
			s.c.cfg.Log.Debug("call not answered", "peer", relay, "err", err)
		}
	})
	return nil
}

// pickUp dials who rang and serves what it brings; answered is called in between: what is served has limits of its own.
func (s *server) pickUp(ctx context.Context, relay peer.ID, n Nonce, answered func()) error {
	dialing, cancel := context.WithTimeout(ctx, spliceSetup)
	defer cancel()
	conn, err := s.c.race(dialing, relay, s.c.direct(relay, kindAnswer), nil, false)
	if err != nil {
		return err
	}
	raw := quick{conn.(*Conn)}
	defer func() { _ = raw.Close() }() // whatever was to be said is inside
	stop := closeOnDone(dialing, raw)
	_, err = raw.Write(append([]byte{spliceVersion}, n[:]...))
	if err == nil {
		err = readOutcome(raw)
	}
	if !stop() && err == nil {
		err = context.Cause(dialing)
	}
	if err != nil {
		return err
	}
	answered()
	s.receive(ctx, raw, relay, 0)
	return nil
}
