package wire

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"
)

// TestSilentCallersKeepNobodyOut: one address whose connections say nothing has its share of the room and no more. Where many
// have taken all of it, the next caller is heard nevertheless, and the oldest one is gone.
func TestSilentCallersKeepNobodyOut(t *testing.T) {
	s, err := newServer(slog.New(slog.DiscardHandler), "test", uint32(os.Geteuid()))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d, err := newDoor(ln.(*net.TCPListener))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.accept(ctx, d) })
	t.Cleanup(func() {
		cancel()
		d.Close()
		wg.Wait()
		s.tasks.Wait()
	})
	heard := func(from string) bool {
		t.Helper()
		dialer := tls.Dialer{
			NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 20 * time.Second},
			Config:    &tls.Config{NextProtos: []string{dataProtocol}, InsecureSkipVerify: true}, //nolint:gosec // as the wire's own
		}
		conn, err := dialer.DialContext(t.Context(), "tcp", ln.Addr().String())
		if err != nil {
			return false
		}
		conn.Close()
		return true
	}
	sentAway := make(chan struct{}, maxKnocking)
	for i := range maxKnocking - maxKnockingFrom {
		at := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		if s.knocking.Enter(household(at), time.Now().Add(-time.Hour), func() { sentAway <- struct{}{} }) == nil {
			t.Fatal("there is room")
		}
	}
	for range maxKnockingFrom {
		if s.knocking.Enter(household(netip.MustParseAddr("127.0.0.2")), time.Now(), func() {}) == nil {
			t.Fatal("an address does not get its share")
		}
	}
	if heard("127.0.0.2") || len(sentAway) != 0 {
		t.Error("an address has more than its share")
	}
	if !heard("127.0.0.3") || len(sentAway) != 1 {
		t.Errorf("nobody makes room for the next caller (%d sent away)", len(sentAway))
	}
}
