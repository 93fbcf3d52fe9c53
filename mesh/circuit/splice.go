package circuit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"weft/mesh/peer"
)

// A member that cannot dial another has a third one carry its bytes: a splice. The two ends do their own TLS inside, so the
// carrier reads, forges and repeats nothing.
//
//	A ── circuit, kind splice: "to B" ──> R ── circuit, kind brought ──────────────> B     where R can dial B
//	A ── circuit, kind splice: "to B" ──> R ~~ datagram: nonce ~~> B
//	                                      R <── circuit, kind answer: nonce ──────── B     where only B can dial R
//	A <═════════════ circuit of A's kind, inside ════════════════════════════════> B
//
//	ask      version(1)  relays that may still be passed(1)  NodeID of B(16)
//	outcome  1 byte: 0 joined, else why not
//	answer   version(1)  nonce(16); then R says an outcome
//
// R may itself reach B through another relay, while the ask allows it.

// Kinds of circuits that are served here and reach no Handler.
const (
	kindSplice  byte = 's' // carry this stream to another member
	kindBrought byte = 'b' // bytes of a circuit that somebody else dialled
	kindAnswer  byte = 'a' // from a member that was called
)

const spliceVersion = 1

// Limits of splices.
const (
	spliceSetup  = 10 * time.Second // for the other end to be reached
	spliceIdle   = 2 * time.Minute  // without a byte in either direction
	spliceLinger = 5 * time.Second  // for the second direction after the first has ended
	spliceBuffer = 16 << 10         // bytes, one TLS record
)

// outcome is a carrier's answer; append-only.
type outcome byte

const (
	joined     outcome = 0
	notCarried outcome = 1 // it carries for nobody
	tooMany    outcome = 2
	notReached outcome = 3 // the other end
	badAsk     outcome = 4
)

func (o outcome) err() error {
	switch o {
	case joined:
		return nil
	case notCarried:
		return errors.New("it does not carry streams of others")
	case tooMany:
		return errors.New("it carries too many streams")
	case notReached:
		return errors.New("it does not reach the other end")
	case badAsk:
		return errors.New("it did not understand")
	}
	return errors.New("it refused")
}

// ErrRelay says that a member that was to carry a stream did not.
var ErrRelay = errors.New("not carried")

// dialVia opens a circuit to a peer that relay carries.
func (c *Circuits) dialVia(ctx context.Context, relay, to peer.ID, kind byte, hops int) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, spliceSetup)
	defer cancel()
	shown, err := c.identify()
	if err != nil {
		return nil, err
	}
	carrier, err := c.race(ctx, relay, c.direct(relay, kindSplice), nil, false)
	if err != nil {
		return nil, c.relayError(relay, err)
	}
	raw := quick{carrier.(*Conn)}
	if err := askCarrier(ctx, raw, to, hops); err != nil {
		_ = raw.Close()
		return nil, c.relayError(relay, err)
	}
	conn, err := c.greet(ctx, raw, shown, to, kind)
	if err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("greet it through %s: %w", relay.Short(), err)
	}
	conn.Via = relay
	c.reached(to, false)
	return conn, nil
}

// relayError keeps an error of the way to the relay from being taken for one about the peer that was dialled: only the
// proof that this node was removed is worth as much from a relay.
func (c *Circuits) relayError(relay peer.ID, err error) error {
	if e, ok := errors.AsType[*RemovedError](err); ok && e.Removal.Node == c.cfg.Key.ID() {
		return fmt.Errorf("%w by %s: %w", ErrRelay, relay.Short(), err)
	}
	return fmt.Errorf("%w by %s: %v", ErrRelay, relay.Short(), err) //nolint:errorlint // on purpose
}

// askCarrier tells a relay where to.
func askCarrier(ctx context.Context, raw net.Conn, to peer.ID, hops int) error {
	stop := closeOnDone(ctx, raw)
	_, err := raw.Write(append([]byte{spliceVersion, byte(hops)}, to[:]...))
	if err == nil {
		err = readOutcome(raw)
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	return err
}

func readOutcome(r io.Reader) error {
	var answer [1]byte
	if _, err := io.ReadFull(r, answer[:]); err != nil {
		return err
	}
	return outcome(answer[0]).err()
}

// quick is a circuit that carries another one. It is closed without a goodbye, which might wait for the peer: the circuit
// inside has one of its own.
type quick struct{ *Conn }

func (q quick) Close() error { return q.NetConn().Close() }

// carry serves a peer that wants to reach another through this node.
func (s *server) carry(ctx context.Context, conn *Conn) {
	from := quick{conn}
	from.SetDeadline(time.Now().Add(spliceSetup))
	var ask [2 + peer.IDSize]byte
	if _, err := io.ReadFull(from, ask[:]); err != nil {
		return
	}
	to, hops := peer.ID(ask[2:]), min(int(ask[1]), MaxHops-1)
	say := func(o outcome) error {
		_, err := from.Write([]byte{byte(o)})
		return err
	}
	switch {
	case ask[0] != spliceVersion || to == s.c.cfg.Key.ID() || to == conn.Peer:
		_ = say(badAsk)
		return
	case !s.c.cfg.Carries():
		_ = say(notCarried)
		return
	case !s.gate.enterSplice(conn.Peer):
		_ = say(tooMany)
		return
	}
	defer s.gate.leaveSplice(conn.Peer)
	reach, cancel := context.WithTimeout(ctx, spliceSetup)
	other, err := s.c.reach(reach, to, hops)
	cancel()
	if err != nil {
		s.c.cfg.Log.Debug("stream not carried", "from", conn.Peer, "peer", to, "err", err)
		_ = say(notReached)
		return
	}
	defer other.Close()
	if say(joined) != nil {
		return
	}
	from.SetDeadline(time.Time{})
	other.SetDeadline(time.Time{})
	splice(ctx, from, other)
}

// reach makes a stream of bytes to a peer for somebody else.
func (c *Circuits) reach(ctx context.Context, to peer.ID, hops int) (net.Conn, error) {
	direct := c.direct(to, kindBrought)
	via, behind := c.relays(to, hops)
	var carried []way
	if c.cfg.Ring != nil {
		carried = append(carried, func(ctx context.Context) (net.Conn, error) { return c.call(ctx, to) })
	}
	for _, relay := range via {
		carried = append(carried, func(ctx context.Context) (net.Conn, error) {
			return c.dialVia(ctx, relay, to, kindBrought, hops-1)
		})
	}
	conn, err := c.race(ctx, to, direct, carried, behind)
	if err != nil {
		return nil, err
	}
	if circuit, ok := conn.(*Conn); ok {
		return quick{circuit}, nil
	}
	return conn, nil
}

// splice copies both ways until both have ended, one has for a while, nothing moves any more, or ctx ends.
func splice(ctx context.Context, a, b net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer closeOnDone(ctx, a)()
	defer closeOnDone(ctx, b)()
	idle := time.AfterFunc(spliceIdle, cancel)
	defer idle.Stop()
	done := make(chan struct{})
	pass := func(to, from net.Conn) {
		buf := make([]byte, spliceBuffer)
		for {
			n, err := from.Read(buf)
			if n > 0 {
				idle.Reset(spliceIdle)
				if _, werr := to.Write(buf[:n]); werr != nil {
					break
				}
			}
			if err != nil {
				break
			}
		}
		if w, ok := to.(interface{ CloseWrite() error }); ok {
			_ = w.CloseWrite()
		}
		done <- struct{}{}
	}
	go pass(a, b)
	go pass(b, a)
	<-done
	linger := time.AfterFunc(spliceLinger, cancel)
	defer linger.Stop()
	<-done
}

// serveOwn serves the kinds of this package. A circuit inside another asks for nothing that would nest without end.
func (s *server) serveOwn(ctx context.Context, conn *Conn, depth int) (served bool) {
	switch conn.Kind {
	case kindSplice:
		if depth == 0 {
			s.carry(ctx, conn)
		}
	case kindBrought:
		s.receive(ctx, quick{conn}, conn.Peer, depth)
	case kindAnswer:
		if depth == 0 {
			s.answered(ctx, conn)
		}
	default:
		return false
	}
	return true
}

// receive serves the bytes that a relay brings as if they had come from outside.
func (s *server) receive(ctx context.Context, raw net.Conn, relay peer.ID, depth int) {
	if depth >= MaxHops {
		return
	}
	from := origin{relay: relay, depth: depth + 1}
	if leave, ok := s.gate.enter(from, raw); ok {
		s.serve(ctx, raw, from, leave)
	}
}
