package wire

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"time"
)

// dataProtocol is what a connection asks for that carries datagrams of the sleeve.
const dataProtocol = "weft-data/1"

// Limits of new connections to the weft port.
const (
	maxKnocking      = 256             // that have not said what they want; for more the oldest makes room
	maxKnockingFrom  = 64              // of them, from one address (/32, /64)
	knockPatience    = time.Second     // none makes room for another sooner
	knockTimeout     = 5 * time.Second // to say it
	handshakeTimeout = 5 * time.Second
)

// dataStreams wraps and unwraps connections of the sleeve in TLS. The TLS makes them pass where only TLS does; it protects
// nothing, so its key is thrown away with the process and nobody's certificate is looked at: the datagrams inside are
// sealed and authenticated from node to node, as they are on UDP.
type dataStreams struct {
	once   sync.Once
	config *tls.Config
	err    error
}

func (d *dataStreams) server() (*tls.Config, error) {
	d.once.Do(func() {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			d.err = err
			return
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().AddDate(100, 0, 0)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			d.err = err
			return
		}
		d.config = &tls.Config{
			Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
			NextProtos:   []string{dataProtocol}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
		}
	})
	return d.config, d.err
}

// accept does the TLS handshake of a connection that asked for dataProtocol.
func (d *dataStreams) accept(ctx context.Context, c net.Conn) (net.Conn, error) {
	config, err := d.server()
	if err != nil {
		return nil, fmt.Errorf("make a throw-away certificate: %w", err)
	}
	return shake(ctx, tls.Server(c, config))
}

// dial opens a connection to another wire.
func (d *dataStreams) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return shake(ctx, tls.Client(c, &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{dataProtocol}, MinVersion: tls.VersionTLS13,
	}))
}

func shake(ctx context.Context, c *tls.Conn) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	err := c.HandshakeContext(ctx)
	if err == nil && c.ConnectionState().NegotiatedProtocol != dataProtocol {
		err = fmt.Errorf("the other end does not speak %s", dataProtocol)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// sort gives a new connection to whom it is for: datagrams are the engine's, all else is weftd's.
func (s *server) sort(ctx context.Context, tc *net.TCPConn, data bool) {
	if !data {
		if s.pass(tc) {
			s.passed.Add(1)
		} else {
			s.closed.Add(1)
		}
		tc.Close() // weftd has a duplicate
		return
	}
	c, err := s.streams.accept(ctx, tc)
	if err != nil {
		s.closed.Add(1)
		return
	}
	s.engine.AddStream(c)
}
