package wire

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// TestDoorClosesWhoIsNotWanted without a word, and goes on with the next one; closing it ends the wait.
func TestDoorClosesWhoIsNotWanted(t *testing.T) {
	for name, at := range map[string]string{"IPv4": "127.0.0.1:0", "both families": "[::]:0"} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", at)
			if err != nil {
				t.Skipf("this machine has no such address: %v", err)
			}
			d, err := newDoor(ln.(*net.TCPListener))
			if err != nil {
				t.Fatal(err)
			}
			to := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: ln.Addr().(*net.TCPAddr).Port}
			call := func(from string) net.Conn {
				t.Helper()
				c, err := net.DialTCP("tcp", &net.TCPAddr{IP: net.ParseIP(from)}, to)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				return c
			}
			wanted := func(a netip.Addr) bool { return a != netip.MustParseAddr("127.0.0.2") }
			call("127.0.0.2")
			if _, err := d.accept(wanted); !errors.Is(err, errRefused) {
				t.Fatalf("nobody else waits, and it says %v", err)
			}
			bad, good := call("127.0.0.2"), call("127.0.0.3")
			tc, err := d.accept(wanted)
			for errors.Is(err, errRefused) { // the second is a little late
				tc, err = d.accept(wanted)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer tc.Close()
			if got, want := tc.RemoteAddr().String(), good.LocalAddr().String(); got != want {
				t.Errorf("let in %s, want %s", got, want)
			}
			if _, err := bad.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("who is not wanted is left waiting: %v", err)
			}
			if _, err := tc.Write([]byte{1}); err != nil {
				t.Error(err)
			}
			if _, err := good.Read(make([]byte, 1)); err != nil {
				t.Errorf("who was let in hears nothing: %v", err)
			}
			ended := make(chan error, 1)
			go func() {
				_, err := d.accept(func(netip.Addr) bool { return true })
				ended <- err
			}()
			d.Close()
			if err := <-ended; !errors.Is(err, net.ErrClosed) {
				t.Errorf("ended with %v", err)
			}
		})
	}
}
