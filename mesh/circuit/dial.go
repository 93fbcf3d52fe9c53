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
	"slices"
	"sync"
	"time"

	"weft/crypto/identity"
	"weft/mesh/peer"
)

// Dial opens a circuit to a member. It tries the peer's endpoints in turn, the next one after a failure or a short
// while, and among them its relays; it returns the first that proves to be the peer. Kind tells the other end what the
// stream is for.
func (c *Circuits) Dial(ctx context.Context, to peer.ID, kind byte) (*Conn, error) {
	conn, err := c.dial(ctx, to, kind, MaxHops)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", to.Short(), err)
	}
	return conn, nil
}

func (c *Circuits) dial(ctx context.Context, to peer.ID, kind byte, hops int) (*Conn, error) {
	direct := c.direct(to, kind)
	via, behind := c.relays(to, hops)
	var carried []way
	for _, relay := range via {
		carried = append(carried, func(ctx context.Context) (net.Conn, error) { return c.dialVia(ctx, relay, to, kind, hops-1) })
	}
	if c.cfg.Ring != nil && hops > 0 {
		carried = append([]way{func(ctx context.Context) (net.Conn, error) { return c.dialCalled(ctx, to, kind) }}, carried...)
	}
	conn, err := c.race(ctx, to, direct, carried, behind)
	if err != nil {
		return nil, err
	}
	return conn.(*Conn), nil
}

// direct are the ways to a peer's endpoints.
func (c *Circuits) direct(to peer.ID, kind byte) (ways []way) {
	endpoints := c.cfg.Endpoints(to)
	for _, ep := range endpoints[:min(len(endpoints), MaxEndpoints)] {
		ways = append(ways, func(ctx context.Context) (net.Conn, error) {
			conn, err := c.dialOne(ctx, to, ep, kind)
			if err != nil {
				return nil, err // and not a *Conn that is nil
			}
			c.reached(to, true)
			return conn, nil
		})
	}
	return ways
}

// relays are whom a stream to a peer may go through, when that many may still be passed.
func (c *Circuits) relays(to peer.ID, hops int) (via []peer.ID, behind bool) {
	via, behind = c.cfg.Relays(to)
	if hops == 0 {
		return nil, behind
	}
	via = slices.DeleteFunc(slices.Clone(via), func(id peer.ID) bool { return id == to || id == c.cfg.Key.ID() })
	return via[:min(len(via), MaxVia)], behind
}

// reached notes whether a peer was dialled at its endpoints.
func (c *Circuits) reached(to peer.ID, directly bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case directly:
		delete(c.barred, to)
	case len(c.barred) < maxVerified:
		c.barred.Add(to)
	}
}

// Barred reports whether the last dial of a peer did not reach it at its endpoints.
func (c *Circuits) Barred(to peer.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.barred.Has(to)
}

// way is one attempt to get a stream to a peer.
type way func(context.Context) (net.Conn, error)

// errNoWay says that there is nothing to try.
var errNoWay = errors.New("no endpoint is known")

// race tries the ways to a peer, the next one after a failure or a short while, and returns the first stream. Ways through
// others go between the direct ones. The first of both kinds start together where a direct one is not likely to work.
func (c *Circuits) race(ctx context.Context, to peer.ID, direct, carried []way, behind bool) (net.Conn, error) {
	ways, together := interleave(direct, carried), 1
	if (behind || c.Barred(to)) && len(carried) > 0 {
		ways, together = interleave(carried, direct), 2
	}
	if len(ways) == 0 {
		return nil, errNoWay
	}

	var attempts sync.WaitGroup
	defer attempts.Wait()
	ctx, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel() // ends the attempts that lost
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result) // unbuffered: a late winner finds nobody and closes itself
	attempt := func(w way) {
		conn, err := w(ctx)
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
			for ; together > 0 && len(ways) > 0; together-- {
				w := ways[0]
				ways = ways[1:]
				attempts.Go(func() { attempt(w) })
				running++
			}
			together = 1
			next.Reset(DialStagger)
		case r := <-results:
			if r.err == nil {
				return r.conn, nil
			}
			errs = append(errs, r.err)
			if running--; running == 0 && len(ways) == 0 {
				return nil, errors.Join(errs...)
			}
			next.Reset(0)
		case <-ctx.Done():
			errs = append(errs, context.Cause(ctx))
			return nil, errors.Join(errs...)
		}
	}
}

// interleave takes from both in turn.
func interleave[T any](a, b []T) []T {
	all := make([]T, 0, len(a)+len(b))
	for i := range max(len(a), len(b)) {
		if i < len(a) {
			all = append(all, a[i])
		}
		if i < len(b) {
			all = append(all, b[i])
		}
	}
	return all
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
