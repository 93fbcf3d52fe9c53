package wire

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	wgconn "golang.zx2c4.com/wireguard/conn"
)

var away = netip.MustParseAddrPort("192.0.2.7:6783")

// message is one of WireGuard's: its type, its sender's or receiver's index, and for an answer the index that it answers.
func message(kind byte, index, answered uint32, size int) []byte {
	b := make([]byte, size)
	b[0] = kind
	binary.LittleEndian.PutUint32(b[4:], index)
	binary.LittleEndian.PutUint32(b[8:], answered)
	return b
}

// one offers a datagram that came alone.
func (f *foreign) one(b []byte) { f.offer(b, len(b), away) }

// taken is what waits for a device.
func taken(t *testing.T, d *portBind, want int) {
	t.Helper()
	if got := len(d.in); got != want {
		t.Errorf("%d datagrams wait, want %d", got, want)
	}
	for len(d.in) > 0 {
		d.free(<-d.in)
	}
}

func TestDatagramsReachTheDeviceThatTheyAreFor(t *testing.T) {
	f := &foreign{send: func([]byte, int, netip.AddrPort) error { return nil }}
	a, b := newBind(f), newBind(f)
	f.add(a)
	f.one(message(4, 77, 0, 64)) // alone, it gets all
	taken(t, a, 1)
	f.add(b)
	f.one(message(1, 9, 0, 148)) // only the one that it was made for understands a first message
	taken(t, a, 1)
	taken(t, b, 1)
	if err := b.Send([][]byte{message(2, 5, 9, 92)}, remoteEnd{away}); err != nil {
		t.Fatal(err)
	}
	f.one(message(4, 5, 0, 64))
	taken(t, a, 0)
	taken(t, b, 1)
	if err := a.Send([][]byte{message(1, 6, 0, 148)}, remoteEnd{away}); err != nil {
		t.Fatal(err)
	}
	f.one(message(2, 8, 6, 92)) // an answer names whom it answers
	taken(t, a, 1)
	f.one(message(4, 1234, 0, 64)) // nobody's
	taken(t, a, 0)
	taken(t, b, 0)
	f.turned = time.Now().Add(-2 * indexLife) // what was learnt outlives one turn
	f.learn(a, message(1, 100, 0, 148))
	f.one(message(4, 5, 0, 64))
	taken(t, b, 1)
	f.remove(b)
	f.one(message(4, 5, 0, 64))
	taken(t, b, 0)
	taken(t, a, 1)
}

func TestADeviceThatDoesNotReadHoldsUpNobody(t *testing.T) {
	f := &foreign{}
	d := newBind(f)
	f.add(d)
	for range 2 * bindQueue {
		f.one(message(4, 1, 0, 64))
	}
	taken(t, d, bindQueue)
}

// TestRunsAreTakenApart: what came together arrives as the datagrams that it was, whatever the device reads at a time.
func TestRunsAreTakenApart(t *testing.T) {
	f := &foreign{}
	a, b := newBind(f), newBind(f)
	f.add(a)
	f.add(b)
	f.learn(a, message(1, 5, 0, 148))
	f.learn(b, message(1, 6, 0, 148))
	var run []byte
	for i, to := range []uint32{5, 5, 5, 6, 6, 5, 77} {
		m := message(4, to, 0, 100)
		m[20] = byte(i)
		run = append(run, m...)
	}
	last := message(4, 5, 0, 40)
	last[20] = 9
	f.offer(append(run, last...), 100, away)
	for _, c := range []struct {
		d    *portBind
		want []byte
	}{{a, []byte{0, 1, 2, 5, 9}}, {b, []byte{3, 4}}} {
		fns, _, err := c.d.Open(1)
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		for len(got) < len(c.want) {
			packets, sizes, eps := [][]byte{make([]byte, 200), make([]byte, 200)}, make([]int, 2), make([]wgconn.Endpoint, 2)
			n, err := fns[0](packets, sizes, eps)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				got = append(got, packets[i][20])
				if want := 100 - 60*int(packets[i][20]/9); sizes[i] != want {
					t.Errorf("datagram %d has %d bytes, want %d", packets[i][20], sizes[i], want)
				}
			}
		}
		if string(got) != string(c.want) {
			t.Errorf("got %v, want %v", got, c.want)
		}
		if held := c.d.bytes.Load(); held != 0 {
			t.Errorf("%d bytes are still counted as waiting", held)
		}
	}
}

// TestLongRunsWaitWithinABound: runs of 60 KiB do not fill the memory with their number.
func TestLongRunsWaitWithinABound(t *testing.T) {
	d := newBind(&foreign{})
	for range bindQueue {
		d.push(make([]byte, maxRun), 1400, away)
	}
	if held := d.bytes.Load(); held > bindBytes || held < bindBytes-maxRun {
		t.Errorf("%d bytes wait, want at most %d", held, bindBytes)
	}
}

func TestDatagramsOfOneSizeTravelTogether(t *testing.T) {
	type call struct{ bytes, size int }
	var calls []call
	f := &foreign{send: func(run []byte, size int, _ netip.AddrPort) error {
		calls = append(calls, call{len(run), size})
		return nil
	}}
	d := newBind(f)
	var bufs [][]byte
	for _, n := range []int{1000, 1000, 1000, 400, 400, 64, 1200} {
		bufs = append(bufs, message(4, 1, 0, n))
	}
	if err := d.Send(bufs, remoteEnd{away}); err != nil {
		t.Fatal(err)
	}
	want := []call{{3400, 1000}, {464, 400}, {1200, 1200}}
	if len(calls) != len(want) {
		t.Fatalf("sent as %v, want %v", calls, want)
	}
	for i := range want {
		if calls[i] != want[i] {
			t.Errorf("sent as %v, want %v", calls, want)
		}
	}
}

func TestABindEndsAndOpensAgain(t *testing.T) {
	d := newBind(&foreign{})
	for range 2 {
		fns, port, err := d.Open(6783)
		if err != nil || port != 6783 || len(fns) != 1 {
			t.Fatalf("open: %d functions, port %d, %v", len(fns), port, err)
		}
		d.push(message(4, 1, 0, 64), 64, away)
		packets, sizes, eps := [][]byte{make([]byte, 2048)}, make([]int, 1), make([]wgconn.Endpoint, 1)
		n, err := fns[0](packets, sizes, eps)
		if err != nil || n != 1 || sizes[0] != 64 || eps[0].DstToString() != away.String() {
			t.Fatalf("received %d, %v, %v, %v", n, sizes, eps, err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := fns[0](packets, sizes, eps); err != net.ErrClosed { //nolint:errorlint // wireguard-go compares like this
			t.Errorf("after the end: %v", err)
		}
	}
}
