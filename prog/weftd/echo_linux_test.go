package weftd

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"weft/mesh/peer"
)

// echoLab is the answering half of echoes, on the loopback.
type echoLab struct {
	*testing.T
	echoes
	ctx  context.Context
	said chan echoMessage // from is whom it was said to
}

func newEchoLab(t *testing.T, life time.Duration) *echoLab {
	ctx, cancel := context.WithCancel(t.Context())
	l := &echoLab{T: t, echoes: newEchoes(life), ctx: ctx, said: make(chan echoMessage, 100)}
	t.Cleanup(func() {
		cancel()
		l.wg.Wait()
	})
	return l
}

// ask asks for a port so many times; nothing that has to be said waits for anybody.
func (l *echoLab) ask(from peer.ID, times int) {
	for i := range times {
		l.answer(l.ctx, echoMessage{from: from, step: echoAsk, nonce: uint64(i + 1)}, netip.MustParseAddr("127.0.0.1"),
			func(to peer.ID, m echoMessage) { m.from = to; l.said <- m }, slog.New(slog.DiscardHandler))
	}
}

// hear waits for the next word.
func (l *echoLab) hear() echoMessage {
	l.Helper()
	select {
	case m := <-l.said:
		return m
	case <-time.After(patience):
		l.Fatal("nothing was said")
		return echoMessage{}
	}
}

// knock sends to a port that was told.
func (l *echoLab) knock(m echoMessage) (from netip.AddrPort) {
	l.Helper()
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), m.at.Port())))
	if err != nil {
		l.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("any packet")); err != nil {
		l.Fatal(err)
	}
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// waiting is how many ports are open.
func (l *echoLab) waiting() (n int) {
	var places []func()
	for i := range echoesOpen {
		if p := l.open.Enter(peer.ID{0xff, byte(i)}, time.Time{}, func() {}); p != nil { // at a time when nobody is sent away
			places = append(places, func() { l.open.Leave(p) })
		}
	}
	for _, leave := range places {
		leave()
	}
	return echoesOpen - len(places)
}

// What members ask for is bounded: of each member so many ports, and so many in all. A port that has served makes room for the
// next.
func TestEchoPortsAreBounded(t *testing.T) {
	l := newEchoLab(t, time.Hour)
	greedy := peer.ID{1}
	l.ask(greedy, 50)
	if n := l.waiting(); n != echoesEach {
		t.Fatalf("%d ports are open for one member, want %d", n, echoesEach)
	}
	for i := range 50 { // many, or one who has many names
		l.ask(peer.ID{2, byte(i)}, 3)
	}
	if n := l.waiting(); n != echoesOpen {
		t.Fatalf("%d ports are open, want %d", n, echoesOpen)
	}
	var told []echoMessage
	for range echoesOpen {
		m := l.hear()
		if m.step != echoPort {
			t.Fatalf("said %+v before anything came", m)
		}
		told = append(told, m)
	}
	m := told[slices.IndexFunc(told, func(m echoMessage) bool { return m.from == greedy })]
	if at := l.knock(m); l.hear() != (echoMessage{from: greedy, step: echoSeen, nonce: m.nonce, at: at}) {
		t.Error("it is not told where its packet came from")
	}
	for deadline := time.Now().Add(patience); l.waiting() == echoesOpen; runtime.Gosched() { // it was said just before the port is closed
		if time.Now().After(deadline) {
			t.Fatal("a port that has served stays open")
		}
	}
	l.ask(peer.ID{3}, 1)
	for m := l.hear(); m.from != (peer.ID{3}); m = l.hear() {
		if m.step == echoPort {
			t.Fatalf("said %+v", m)
		}
	}
}

// A port to which nothing comes is closed by itself.
func TestEchoPortsAreClosed(t *testing.T) {
	l := newEchoLab(t, time.Millisecond)
	for i := range echoesOpen {
		l.ask(peer.ID{byte(i)}, 1)
	}
	l.wg.Wait()
	if n := l.waiting(); n != 0 {
		t.Errorf("%d ports are open for ever", n)
	}
}
