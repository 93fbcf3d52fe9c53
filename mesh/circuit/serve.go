package circuit

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft/crypto/identity"
	"weft/mesh/lobby"
	"weft/mesh/peer"
)

// Accept waits for the next raw connection.
type Accept func(context.Context) (net.Conn, error)

// Listener takes connections from ln, which is closed when ctx of Serve ends.
func Listener(ln net.Listener) Accept {
	return func(ctx context.Context) (net.Conn, error) {
		stop := closeOnDone(ctx, ln)
		defer stop()
		return ln.Accept()
	}
}

// Handlers get what came in. A connection is closed when its handler returns; ctx ends with Serve.
type Handlers struct {
	Circuit func(ctx context.Context, conn *Conn)
	// Join gets machines that are no members yet; from is where they came from. Until it has called known, which tells
	// whether there is room for one more, it counts with those whose handshake is under way, and may be closed to make room
	// for another. Nil refuses them.
	Join func(ctx context.Context, conn *tls.Conn, from netip.AddrPort, known func() bool)
}

// Serve takes connections until ctx ends or accept fails for good (net.ErrClosed), and returns when all handlers have.
func (c *Circuits) Serve(ctx context.Context, accept Accept, h Handlers) error {
	ctx, cancel := context.WithCancel(ctx)
	s := &server{c: c, h: h, ctx: ctx, gate: newGate(), answering: map[Nonce]peer.ID{}}
	c.mu.Lock()
	c.server = s
	c.mu.Unlock()
	defer s.wg.Wait()
	defer cancel()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.server = nil
	}()
	const pause = 50 * time.Millisecond // out of file descriptors: others must end first
	for {
		raw, err := accept(ctx)
		switch {
		case ctx.Err() != nil:
			if raw != nil {
				raw.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept connection: %w", err)
		case err != nil:
			s.lines.Logger(c.cfg.Log, time.Now()).Warn("accept connection", "err", err)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		}
		from := origin{at: source(raw)}
		leave, ok := s.gate.enter(from, raw)
		if !ok {
			raw.Close() // without a word: words are what a flood wants
			continue
		}
		s.wg.Go(func() { s.serve(ctx, raw, from, leave) })
	}
}

type server struct {
	c    *Circuits
	h    Handlers
	ctx  context.Context // of Serve
	gate gate
	wg   sync.WaitGroup

	lines lobby.Lines

	answering map[Nonce]peer.ID // calls, and who rang; guarded by the lock of c
}

// origin is where a connection comes from.
type origin struct {
	at    netip.AddrPort // zero when a relay brought it
	relay peer.ID
	depth int // how many circuits it lies in
}

// serve owns raw and one place of the gate, which it leaves after the handshake.
func (s *server) serve(ctx context.Context, raw net.Conn, from origin, leave func()) {
	defer raw.Close()
	stop := closeOnDone(ctx, raw)
	defer stop()

	raw.SetDeadline(time.Now().Add(HandshakeTimeout))
	defer leave()
	var cert *identity.Certificate // of the other end, when it is a member
	t := tls.Server(raw, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		return s.choose(hello, &cert, from)
	}})
	if err := t.HandshakeContext(ctx); err != nil {
		s.c.cfg.Log.Debug("refuse connection", "endpoint", from.at, "err", err)
		return
	}
	if t.ConnectionState().NegotiatedProtocol == ALPNJoin {
		raw.SetDeadline(time.Time{})
		joins := false
		defer func() {
			if joins {
				s.gate.leaveJoin()
			}
		}()
		s.h.Join(ctx, t, from.at, sync.OnceValue(func() bool {
			if joins = s.gate.enterJoin(); joins {
				leave()
			}
			return joins
		}))
		t.Close()
		return
	}
	conn, err := s.admit(t, cert)
	leave()
	if err != nil {
		s.lines.Logger(s.c.cfg.Log, time.Now()).Info("refuse circuit", "endpoint", from.at, "err", err)
		return
	}
	defer s.gate.leavePeer(conn.Peer)
	raw.SetDeadline(time.Time{})
	defer s.c.serving(conn)()
	conn.Via = from.relay
	if s.c.cfg.Allowed(conn.Peer, conn.Certificate) == nil && // or Cut came between the verdict and now
		!s.serveOwn(ctx, conn, from.depth) {
		s.h.Circuit(ctx, conn)
	}
	t.Close()
}

// choose picks the settings by the protocol that the client offers. A member's certificate is verified inside the
// handshake, so that nothing is said to anyone without one, and left in cert.
func (s *server) choose(hello *tls.ClientHelloInfo, cert **identity.Certificate, from origin) (*tls.Config, error) {
	shown, err := s.c.identify()
	if err != nil {
		return nil, err
	}
	cfg := settings()
	cfg.Certificates = []tls.Certificate{*shown}
	switch {
	case slices.Contains(hello.SupportedProtos, ALPN):
		cfg.NextProtos = []string{ALPN}
		cfg.ClientAuth = tls.RequireAnyClientCert
		cfg.VerifyConnection = func(cs tls.ConnectionState) (err error) {
			*cert, err = s.c.member(cs)
			return err
		}
	case slices.Contains(hello.SupportedProtos, ALPNJoin) && s.h.Join != nil && from.relay.IsZero():
		cfg.NextProtos = []string{ALPNJoin}
	default:
		return nil, fmt.Errorf("no protocol in common: %q", hello.SupportedProtos)
	}
	return cfg, nil
}

// admit reads the kind of a circuit and says the verdict.
func (s *server) admit(t *tls.Conn, cert *identity.Certificate) (*Conn, error) {
	kind := make([]byte, 1)
	if _, err := io.ReadFull(t, kind); err != nil {
		return nil, fmt.Errorf("read kind: %w", err)
	}
	conn := &Conn{Conn: t, Peer: cert.ID(), Certificate: cert, Kind: kind[0]}
	say := welcome
	err := s.allowed(cert)
	if errors.Is(err, ErrRemoved) {
		say = removed
	} else if err != nil {
		say = refused
	} else if !s.gate.enterPeer(conn.Peer) {
		say, err = overload, fmt.Errorf("%s has too many circuits", conn.Peer.Short())
	}
	if _, werr := t.Write(append([]byte{byte(say)}, proof(err)...)); werr != nil && err == nil {
		s.gate.leavePeer(conn.Peer)
		return nil, fmt.Errorf("write verdict: %w", werr)
	}
	if err != nil {
		t.CloseWrite()
		return nil, err
	}
	return conn, nil
}

// proof is what follows the verdict.
func proof(err error) []byte {
	e, ok := errors.AsType[*RemovedError](err)
	if !ok {
		return nil
	}
	raw := e.Removal.Raw()
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(raw))), raw...)
}

func (s *server) allowed(cert *identity.Certificate) error {
	if cert.ID() == s.c.cfg.Key.ID() {
		return errors.New("it is this node itself")
	}
	return s.c.cfg.Allowed(cert.ID(), cert)
}
