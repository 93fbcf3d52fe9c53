package circuit

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"weft/crypto/identity"
	"weft/mesh/peer"
)

// Dial opens a circuit to a member. It tries the peer's endpoints in turn, the next one after a failure or a short
// while, and returns the first that proves to be the peer. Kind tells the other end what the stream is for.
func (c *Circuits) Dial(ctx context.Context, to peer.ID, kind byte) (*Conn, error) {
	endpoints := c.cfg.Endpoints(to)
	if len(endpoints) == 0 {
		return nil, fmt.Errorf("dial %s: no endpoint is known", to.Short())
	}
	endpoints = endpoints[:min(len(endpoints), MaxEndpoints)]

	var attempts sync.WaitGroup
	defer attempts.Wait()
	ctx, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel() // ends the attempts that lost
	type result struct {
		conn *Conn
		err  error
	}
	results := make(chan result) // unbuffered: a late winner finds nobody and closes itself
	attempt := func(ep netip.AddrPort) {
		conn, err := c.dialOne(ctx, to, ep, kind)
		select {
		case results <- result{conn, err}:
		case <-ctx.Done():
			if conn != nil {
				conn.Close()
			}
		}
	}
	next := time.NewTimer(0)
	defer next.Stop()
	var errs []error
	running := 0
	for {
		select {
		case <-next.C:
			if len(endpoints) > 0 {
				ep := endpoints[0]
				endpoints = endpoints[1:]
				attempts.Go(func() { attempt(ep) })
				running++
				next.Reset(DialStagger)
			}
		case r := <-results:
			if r.err == nil {
				return r.conn, nil
			}
			errs = append(errs, r.err)
			if running--; running == 0 && len(endpoints) == 0 {
				return nil, fmt.Errorf("dial %s: %w", to.Short(), errors.Join(errs...))
			}
			next.Reset(0)
		case <-ctx.Done():
			errs = append(errs, context.Cause(ctx))
			return nil, fmt.Errorf("dial %s: %w", to.Short(), errors.Join(errs...))
		}
	}
}

func (c *Circuits) dialOne(ctx context.Context, to peer.ID, ep netip.AddrPort, kind byte) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, HandshakeTimeout)
	defer cancel()
	shown, err := c.identify()
	if err != nil {
		return nil, err
	}
	raw, err := c.cfg.Open(ctx, to, ep)
	if err != nil {
		return nil, fmt.Errorf("reach %s: %w", ep, err)
	}
	conn, err := c.greet(ctx, raw, shown, to, kind)
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("greet %s: %w", ep, err)
	}
	return conn, nil
}

// greet does the client's half of the handshake on raw.
func (c *Circuits) greet(ctx context.Context, raw net.Conn, shown *tls.Certificate, to peer.ID, kind byte) (*Conn, error) {
	stop := closeOnDone(ctx, raw)
	var cert *identity.Certificate
	cfg := settings()
	cfg.NextProtos = []string{ALPN}
	cfg.Certificates = []tls.Certificate{*shown}
	cfg.VerifyConnection = func(cs tls.ConnectionState) (err error) {
		if cert, err = c.member(cs); err != nil {
			return err
		}
		if cert.ID() != to {
			return fmt.Errorf("it is %s", cert.ID())
		}
		return c.cfg.Allowed(to, cert)
	}
	t := tls.Client(raw, cfg)
	answer := make([]byte, 1)
	err := t.HandshakeContext(ctx)
	if err == nil {
		_, err = t.Write([]byte{kind})
	}
	if err == nil {
		_, err = io.ReadFull(t, answer)
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		v := verdict(answer[0])
		if err = v.err(); v == removed {
			if proven := c.readProof(t); proven != nil {
				err = proven
			}
		}
	}
	if err != nil {
		return nil, err
	}
	return &Conn{Conn: t, Peer: to, Certificate: cert, Kind: kind, Dialed: true}, nil
}

// readProof reads why this node was removed; nil when that is not proven.
func (c *Circuits) readProof(r io.Reader) error {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil //nolint:nilerr // an older weft does not send it
	}
	raw := make([]byte, min(int(binary.BigEndian.Uint16(size[:])), identity.MaxItem))
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil //nolint:nilerr // as good as none
	}
	rem, err := identity.ParseRemoval(raw)
	if err != nil || rem.Node != c.cfg.Key.ID() || rem.Verify(c.cfg.Root) != nil {
		return nil //nolint:nilerr // no proof: the verdict stands without it
	}
	return &RemovedError{rem}
}

// closeOnDone closes conn when ctx ends, until stop is called; stop reports whether it came in time.
func closeOnDone(ctx context.Context, conn io.Closer) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = conn.Close() })
}

// DialJoin does the joiner's handshake on raw: the server must prove a node key with a certificate, which check holds
// against the token. Check gets the root that the server claims, under which the certificate has been verified.
func DialJoin(ctx context.Context, raw net.Conn, check func(root ed25519.PublicKey, cert *identity.Certificate) error) (*tls.Conn, error) {
	cfg := settings()
	cfg.NextProtos = []string{ALPNJoin}
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		root, cert, err := proven(cs)
		if err != nil {
			return err
		}
		if err := cert.Verify(root); err != nil {
			return err
		}
		return check(root, cert)
	}
	t := tls.Client(raw, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return t, nil
}
