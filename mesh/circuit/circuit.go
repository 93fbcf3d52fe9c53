package circuit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"weft/crypto/identity"
	"weft/mesh/peer"
)

// Limits of the implementation.
const (
	HandshakeTimeout = 10 * time.Second       // of one handshake, verdict included
	DialTimeout      = 15 * time.Second       // of Dial over all endpoints
	DialStagger      = 250 * time.Millisecond // before the next endpoint is tried beside those under way
	MaxEndpoints     = 8                      // tried by one Dial

	MaxHandshakes       = 64   // under way at once; more are closed at once
	MaxHandshakesSource = 16   // of them, from one IPv4 address or IPv6 /64
	MaxCircuits         = 4096 // served at once
	MaxCircuitsPeer     = 64   // of them, from one peer
	MaxJoins            = 64   // machines in the join protocol at once

	maxVerified = 4096 // certificates remembered as good
)

// Config is what circuits need to know about this node and the others.
type Config struct {
	Key  identity.Key                 // of this node
	Root ed25519.PublicKey            // of the cluster
	Cert func() *identity.Certificate // of this node; nil while it is no member: then nothing is dialled or served

	// Allowed is asked about every peer whose certificate verified, at each new circuit: nil lets it in, any error keeps
	// it out. ErrRemoved tells the peer why.
	Allowed func(peer.ID, *identity.Certificate) error

	// Endpoints are where a peer may be reached, best first.
	Endpoints func(peer.ID) []netip.AddrPort

	// Open makes the raw stream to a peer's endpoint; nil means TCP. A stream spliced through another peer fits here.
	Open func(context.Context, peer.ID, netip.AddrPort) (net.Conn, error)

	Log *slog.Logger
}

// Circuits dials and serves. It starts nothing by itself.
type Circuits struct {
	cfg Config

	mu       sync.Mutex       // guards all below
	shown    *tls.Certificate // for the certificate shownRaw
	shownRaw []byte
	verified map[peer.ID]*identity.Certificate // of peers; checking one costs six signatures, and every call is a circuit
}

// New checks cfg.
func New(cfg Config) (*Circuits, error) {
	switch {
	case cfg.Key.IsZero():
		return nil, errors.New("make circuits: no key")
	case len(cfg.Root) != ed25519.PublicKeySize:
		return nil, errors.New("make circuits: no root")
	case cfg.Cert == nil || cfg.Allowed == nil || cfg.Endpoints == nil || cfg.Log == nil:
		return nil, errors.New("make circuits: Cert, Allowed, Endpoints and Log are required")
	}
	if cfg.Open == nil {
		cfg.Open = openTCP
	}
	return &Circuits{cfg: cfg, verified: map[peer.ID]*identity.Certificate{}}, nil
}

func openTCP(ctx context.Context, _ peer.ID, to netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", to.String())
}

// Conn is an authenticated stream to a member. Reads, writes and deadlines are those of the TLS connection.
type Conn struct {
	*tls.Conn
	Peer        peer.ID
	Certificate *identity.Certificate
	Kind        byte // what the dialler wants it for
	Dialed      bool // by this end
}

// Exporter derives n bytes that only the two ends know (RFC 8446, 7.5).
func (c *Conn) Exporter(label string, context []byte, n int) ([]byte, error) {
	cs := c.ConnectionState()
	return cs.ExportKeyingMaterial(label, context, n)
}

// ErrRemoved is what Allowed returns for a removed node, and what a removed node gets from Dial.
var ErrRemoved = errors.New("removed from the cluster")

// ErrRefused is what Dial returns when the peer does not let this node in for another reason.
var ErrRefused = errors.New("refused by the peer")

// ErrNotMember is returned while this node has no certificate.
var ErrNotMember = errors.New("this node is no member yet")

// verdict is the server's answer to a circuit; append-only.
type verdict byte

const (
	welcome  verdict = 0
	removed  verdict = 1
	refused  verdict = 2
	overload verdict = 3
)

func (v verdict) err() error {
	switch v {
	case welcome:
		return nil
	case removed:
		return ErrRemoved
	case overload:
		return fmt.Errorf("%w: too many circuits", ErrRefused)
	}
	return ErrRefused
}

// identify is the X.509 certificate of the present weft certificate.
func (c *Circuits) identify() (*tls.Certificate, error) {
	cert := c.cfg.Cert()
	if cert == nil {
		return nil, ErrNotMember
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shown == nil || !bytes.Equal(c.shownRaw, cert.Raw()) {
		shown, err := present(c.cfg.Key, c.cfg.Root, cert)
		if err != nil {
			return nil, err
		}
		c.shown, c.shownRaw = shown, cert.Raw()
	}
	return c.shown, nil
}

// member takes the verified certificate out of a handshake.
func (c *Circuits) member(cs tls.ConnectionState) (*identity.Certificate, error) {
	_, cert, err := proven(cs)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	known := c.verified[cert.ID()]
	c.mu.Unlock()
	if known != nil && bytes.Equal(known.Raw(), cert.Raw()) {
		return known, nil
	}
	if err := cert.Verify(c.cfg.Root); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.verified) >= maxVerified {
		clear(c.verified)
	}
	c.verified[cert.ID()] = cert
	return cert, nil
}
