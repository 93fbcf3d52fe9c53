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

	MaxHandshakes       = 64   // under way at once; for more the oldest makes room, if it is old
	MaxHandshakesSource = 16   // of them, from one IPv4 address or IPv6 /64
	MaxHandshakesRelay  = 32   // of as many that relays bring, by one relay
	MaxCircuits         = 4096 // served at once
	MaxCircuitsPeer     = 64   // of them, from one peer
	MaxJoins            = 64   // joins worked on at once

	MaxSplices     = 256 // streams carried for others at once
	MaxSplicesPeer = 16  // of them, for one peer that asked
	MaxAnswers     = 64  // calls answered at once
	MaxAnswersPeer = 32  // of them, of one peer
	MaxVia         = 3   // relays tried by one Dial
	MaxHops        = 2   // relays between two ends

	maxVerified = 4096 // certificates remembered as good

	handshakePatience = 2 * time.Second // no handshake makes room for another sooner
)

// Config is what circuits need to know about this node and the others.
type Config struct {
	Key  identity.Key                 // of this node
	Root ed25519.PublicKey            // of the cluster
	Cert func() *identity.Certificate // of this node; nil while it is no member: then nothing is dialled or served

	// Allowed is asked about every peer whose certificate verified, at each new circuit: nil lets it in, any error keeps
	// it out. A *RemovedError shows the peer why.
	Allowed func(peer.ID, *identity.Certificate) error

	// Endpoints are where a peer may be reached, best first.
	Endpoints func(peer.ID) []netip.AddrPort

	// Open makes the raw stream to a peer's endpoint; nil means TCP.
	Open func(context.Context, peer.ID, netip.AddrPort) (net.Conn, error)

	// Relays are members that may carry a stream to a peer, best first. Behind says that dialling the peer itself is not
	// worth waiting for. Nil: there are none.
	Relays func(peer.ID) (via []peer.ID, behind bool)

	// Carries reports whether this node carries streams for others now; nil: never.
	Carries func() bool

	// Ring sends a peer the nonce of a call that is held for it here, by a datagram that may be lost; there it is given to
	// Answer. An error says that the peer could not answer: this node cannot be dialled. Nil: nobody is called.
	Ring func(to peer.ID, n Nonce) error

	Log *slog.Logger
}

// Circuits dials and serves. It starts nothing by itself.
type Circuits struct {
	cfg Config

	mu       sync.Mutex       // guards all below
	shown    *tls.Certificate // for the certificate shownRaw
	shownRaw []byte
	verified map[peer.ID]*identity.Certificate // of peers; checking one costs six signatures, and every call is a circuit
	open     map[peer.ID]map[*Conn]struct{}    // circuits that are served
	barred   peer.Set                          // whom the last dial did not reach at their endpoints
	held     map[Nonce]*call                   // calls held for peers that dial back
	server   *server                           // while Serve runs
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
	if cfg.Relays == nil {
		cfg.Relays = func(peer.ID) ([]peer.ID, bool) { return nil, false }
	}
	if cfg.Carries == nil {
		cfg.Carries = func() bool { return false }
	}
	return &Circuits{
		cfg: cfg, verified: map[peer.ID]*identity.Certificate{}, open: map[peer.ID]map[*Conn]struct{}{},
		barred: peer.Set{}, held: map[Nonce]*call{},
	}, nil
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
	Kind        byte    // what the dialler wants it for
	Dialed      bool    // by this end
	Via         peer.ID // who carries it, as far as this end knows; zero: nobody
}

// Exporter derives n bytes that only the two ends know (RFC 8446, 7.5).
func (c *Conn) Exporter(label string, context []byte, n int) ([]byte, error) {
	cs := c.ConnectionState()
	return cs.ExportKeyingMaterial(label, context, n)
}

// ErrRemoved says that a node is no member any more: the one that was dialled, or this one.
var ErrRemoved = errors.New("removed from the cluster")

// RemovedError is ErrRemoved with its proof: what Allowed returns for a removed node, and what a removed node gets from
// Dial. From Dial it has been verified, and is about this node or the one that was dialled.
type RemovedError struct{ Removal *identity.Removal }

func (e *RemovedError) Error() string {
	return fmt.Sprintf("%s was %v (%s)", e.Removal.Node.Short(), ErrRemoved, e.Removal.Reason)
}

// Is makes it an ErrRemoved.
func (e *RemovedError) Is(target error) bool { return target == ErrRemoved }

// ErrRefused is what Dial returns when the peer does not let this node in for another reason.
var ErrRefused = errors.New("refused by the peer")

// ErrNotMember is returned while this node has no certificate.
var ErrNotMember = errors.New("this node is no member yet")

// Cut closes the circuits that peers opened and that Allowed would not let in any more.
func (c *Circuits) Cut() {
	c.mu.Lock()
	var cut []*Conn
	for _, conns := range c.open {
		for conn := range conns {
			if c.cfg.Allowed(conn.Peer, conn.Certificate) != nil {
				cut = append(cut, conn)
			}
		}
	}
	c.mu.Unlock()
	for _, conn := range cut {
		_ = conn.NetConn().Close() // at once: a TLS goodbye could wait for the peer
	}
}

// serving notes a circuit until done is called.
func (c *Circuits) serving(conn *Conn) (done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[conn.Peer] == nil {
		c.open[conn.Peer] = map[*Conn]struct{}{}
	}
	c.open[conn.Peer][conn] = struct{}{}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if delete(c.open[conn.Peer], conn); len(c.open[conn.Peer]) == 0 {
			delete(c.open, conn.Peer)
		}
	}
}

// verdict is the server's answer to a circuit; append-only. After removed comes the proof, its length first (uint16): a
// peer of an older weft does not read it, one of a newer weft does without if there is none.
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
