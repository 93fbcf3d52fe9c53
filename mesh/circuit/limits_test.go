package circuit

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/peer"
)

func TestSilentEndpointsDoNotHoldUpTheGoodOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, u := newCluster(), newUnderlay()
		alice, bob := c.member("alice"), c.member("bob")
		serve(t, u.node(t, c.root.Public(), bob, nil), u.listen(at(4)), Handlers{Circuit: echo})
		book := map[peer.ID][]netip.AddrPort{bob.ID(): {at(2), at(3), at(4)}}
		a := u.node(t, c.root.Public(), alice, book)
		began := time.Now()
		conn, err := a.Dial(t.Context(), bob.ID(), 0)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if took := time.Since(began); took != 2*DialStagger {
			t.Errorf("it took %v", took)
		}
		book[bob.ID()] = []netip.AddrPort{at(2), at(3)}
		began = time.Now()
		if _, err := a.Dial(t.Context(), bob.ID(), 0); err == nil || time.Since(began) > DialTimeout {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

func TestSilentClientsAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, u := newCluster(), newUnderlay()
		bob := c.member("bob")
		serve(t, u.node(t, c.root.Public(), bob, nil), u.listen(at(2)), Handlers{Circuit: echo})
		raw := must(u.open(t.Context(), at(2)))
		began := time.Now()
		_, _ = io.Copy(io.Discard, raw)
		if took := time.Since(began); took != HandshakeTimeout {
			t.Errorf("closed after %v", took)
		}
	})
}

// from gives a pipe the address of a TCP connection.
type from struct {
	net.Conn
	addr *net.TCPAddr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

func TestFloodsAreRefusedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		bob := c.member("bob")
		u := newUnderlay()
		queue := make(chan net.Conn)
		serve(t, u.node(t, c.root.Public(), bob, nil), func(ctx context.Context) (net.Conn, error) {
			select {
			case c := <-queue:
				return c, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}, Handlers{Circuit: echo})
		connect := func(ip string) bool {
			a, b := net.Pipe()
			t.Cleanup(func() { a.Close() })
			queue <- from{b, &net.TCPAddr{IP: net.ParseIP(ip), Port: 1}}
			synctest.Wait()
			a.SetReadDeadline(time.Now()) // a closed pipe says EOF, an open one times out
			_, err := a.Read(make([]byte, 1))
			return !errors.Is(err, io.EOF)
		}
		for i := range MaxHandshakesSource {
			if !connect("2001:db8::" + string(rune('1'+i%9))) {
				t.Fatalf("handshake %d of a source was refused", i)
			}
		}
		if connect("2001:db8::ffff") {
			t.Error("one /64 may have more than its share")
		}
		for i := MaxHandshakesSource; i < MaxHandshakes; i++ {
			if !connect(net.IPv4(10, 0, 0, byte(i)).String()) {
				t.Fatalf("handshake %d was refused", i)
			}
		}
		if connect("10.0.1.1") {
			t.Error("more handshakes than the limit")
		}
		time.Sleep(HandshakeTimeout) // fake time: the silent ones are closed
		synctest.Wait()
		if !connect("2001:db8::1") {
			t.Error("places were not given back")
		}
	})
}

func TestOnePeerCannotTakeAllCircuits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, u := newCluster(), newUnderlay()
		alice, bob := c.member("alice"), c.member("bob")
		serve(t, u.node(t, c.root.Public(), bob, nil), u.listen(at(2)), Handlers{Circuit: echo})
		a := u.node(t, c.root.Public(), alice, map[peer.ID][]netip.AddrPort{bob.ID(): {at(2)}})
		var first *Conn
		for i := range MaxCircuitsPeer {
			conn, err := a.Dial(t.Context(), bob.ID(), 0)
			if err != nil {
				t.Fatalf("circuit %d: %v", i, err)
			}
			defer conn.Close()
			if first == nil {
				first = conn
			}
		}
		if _, err := a.Dial(t.Context(), bob.ID(), 0); !errors.Is(err, ErrRefused) {
			t.Errorf("one more: %v", err)
		}
		first.Close()
		synctest.Wait()
		conn, err := a.Dial(t.Context(), bob.ID(), 0)
		if err != nil {
			t.Fatalf("after one was closed: %v", err)
		}
		conn.Close()
	})
}
