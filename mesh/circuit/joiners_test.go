package circuit

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"weft/crypto/identity"
)

// porch is a member that takes joiners, from wherever they say that they are.
type porch struct {
	t     *testing.T
	queue chan net.Conn
}

// newPorch serves joiners: one that says a byte is told whether there is room for it, and stays until it leaves.
func newPorch(t *testing.T) porch {
	c, u := newCluster(), newUnderlay()
	p := porch{t, make(chan net.Conn)}
	serve(t, u.node(t, c.root.Public(), c.member("bob"), nil), func(ctx context.Context) (net.Conn, error) {
		select {
		case c := <-p.queue:
			return c, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}, Handlers{Circuit: echo, Join: func(_ context.Context, conn *tls.Conn, _ netip.AddrPort, known func() bool) {
		word := make([]byte, 1)
		if _, err := io.ReadFull(conn, word); err != nil {
			return
		}
		word[0] = 'n'
		if known() {
			word[0] = 'y'
		}
		if _, err := conn.Write(word); err == nil && word[0] == 'y' {
			_, _ = io.Copy(io.Discard, conn)
		}
	}})
	return p
}

// connect does the handshake of a joiner at an address; nil: it was turned away.
func (p porch) connect(ip net.IP) *tls.Conn {
	p.t.Helper()
	a, b := net.Pipe()
	p.t.Cleanup(func() { a.Close() })
	p.queue <- from{b, &net.TCPAddr{IP: ip, Port: 1}}
	conn, err := DialJoin(p.t.Context(), a, func(ed25519.PublicKey, *identity.Certificate) error { return nil })
	if err != nil {
		return nil
	}
	synctest.Wait()
	return conn
}

// speak says what the joiner came for, and reports whether there is room for it.
func speak(conn *tls.Conn) (bool, error) {
	word := []byte{'x'}
	if _, err := conn.Write(word); err != nil {
		return false, err
	}
	_, err := io.ReadFull(conn, word)
	return word[0] == 'y', err
}

// Machines that shake hands and then say nothing do not keep those out that have come to join: one place in the network has
// its share, and of many places whoever has waited longest makes room.
func TestSilentJoinersMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPorch(t)
		one := net.IPv4(10, 1, 0, 1)
		for i := range MaxHandshakesSource {
			if p.connect(one) == nil {
				t.Fatalf("joiner %d of one place was turned away", i)
			}
		}
		if p.connect(one) != nil {
			t.Error("one place has more than its share")
		}
		for i := MaxHandshakesSource; i < MaxHandshakes; i++ {
			if p.connect(net.IPv4(10, 2, 0, byte(i))) == nil {
				t.Fatalf("joiner %d was turned away", i)
			}
		}
		time.Sleep(handshakePatience) // fake time
		conn := p.connect(net.IPv4(10, 3, 0, 1))
		if conn == nil {
			t.Fatal("the silent ones do not make room")
		}
		if room, err := speak(conn); !room || err != nil {
			t.Errorf("room: %v, %v", room, err)
		}
	})
}

// Those whose request is worked on are bounded on their own, and are not sent away for others.
func TestJoinsUnderWayAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPorch(t)
		var all []*tls.Conn
		join := func() (bool, error) {
			conn := p.connect(net.IPv4(10, 1, 0, 1)) // all behind one NAT
			if conn == nil {
				return false, errors.New("turned away")
			}
			all = append(all, conn)
			return speak(conn)
		}
		for i := range MaxJoins {
			if room, err := join(); !room || err != nil {
				t.Fatalf("join %d: room %v, %v", i, room, err)
			}
		}
		if room, err := join(); room || err != nil {
			t.Errorf("one more than the limit: room %v, %v", room, err)
		}
		time.Sleep(handshakePatience)
		for i := range MaxHandshakes {
			if p.connect(net.IPv4(10, 2, 0, byte(i))) == nil {
				t.Fatalf("joiner %d was turned away", i)
			}
		}
		all[0].NetConn().Close()
		synctest.Wait()
		time.Sleep(handshakePatience)
		if room, err := join(); !room || err != nil {
			t.Errorf("the place of one that has left: room %v, %v", room, err)
		}
	})
}
