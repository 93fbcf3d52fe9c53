package circuit

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
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
		time.Sleep(handshakePatience) // fake time
		if !connect("10.0.1.1") {
			t.Error("the silent ones do not make room for another")
		}
		time.Sleep(HandshakeTimeout) // the silent ones are closed
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

// TestOneRelayCannotTakeAllHandshakes: a member that says it brings streams of others, and then nothing, keeps neither those out
// who come themselves nor those whom another relay brings.
func TestOneRelayCannotTakeAllHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, u := newCluster(), newUnderlay()
		alice, bob, liar, other := c.member("alice"), c.member("bob"), c.member("liar"), c.member("other")
		book := map[peer.ID][]netip.AddrPort{bob.ID(): {at(2)}}
		serve(t, u.node(t, c.root.Public(), bob, nil), u.listen(at(2)), Handlers{Circuit: echo})
		dial := func(m member, kind byte) (*Conn, error) {
			conn, err := u.node(t, c.root.Public(), m, book).Dial(t.Context(), bob.ID(), kind)
			if err == nil {
				t.Cleanup(func() { conn.NetConn().Close() })
			}
			return conn, err
		}
		// open reports whether the far end waits for the first word of a handshake.
		open := func(conn *Conn) bool {
			conn.SetReadDeadline(time.Now().Add(time.Millisecond)) // fake time
			_, err := conn.Read(make([]byte, 1))
			return errors.Is(err, os.ErrDeadlineExceeded)
		}
		for i := range MaxHandshakesRelay + 1 {
			conn, err := dial(liar, kindBrought)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := open(conn), i < MaxHandshakesRelay; got != want {
				t.Fatalf("stream %d that a relay brings is kept: %v", i, got)
			}
		}
		if conn, err := dial(other, kindBrought); err != nil || !open(conn) {
			t.Errorf("another relay brings nothing any more: %v", err)
		}
		conn, err := dial(alice, 'x')
		if err != nil {
			t.Fatal(err)
		}
		if err := repeat(conn); err != nil {
			t.Error(err)
		}
	})
}

// TestOneCallerCannotTakeAllAnswers: a member that rings and rings is answered a few times at once, and others are answered
// all the same.
func TestOneCallerCannotTakeAllAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		a, b, liar := w.live("a", echo), w.live("b", echo), w.live("liar", echo)
		b.blocked.Add(liar.ID()) // so that an answer to it takes its time
		synctest.Wait()          // until it serves
		refused := 0
		for i := range MaxAnswers {
			if b.Answer(liar.ID(), Nonce{byte(i)}) != nil {
				refused++
			}
		}
		if refused != MaxAnswers-MaxAnswersPeer {
			t.Errorf("%d of %d refused", refused, MaxAnswers)
		}
		a.blocked.Add(b.ID()) // so that it calls
		var open []*Conn
		for range MaxAnswersPeer + 4 { // answers that were given take no room
			open = append(open, w.talk(a, b))
		}
		for _, conn := range open {
			conn.Close()
		}
	})
}
