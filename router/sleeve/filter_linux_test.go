package sleeve

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"weft/crypto/noise"
	"weft/mesh/peer"
)

// sorts are datagrams of every class, by name.
func sorts() map[class][][]byte {
	sized := func(first byte, n int, last byte) []byte {
		b := make([]byte, n)
		b[0], b[n-1] = first, last
		return b
	}
	first := func(all ...byte) (list [][]byte) {
		for _, b := range all {
			list = append(list, []byte{b}, sized(b, 400, 0), sized(b, 60, 1))
		}
		return list
	}
	m := map[class][][]byte{
		classBare:   {sized(noise.TypeInitiation, noise.MinInitiation, 0), sized(noise.TypeInitiation, noise.MaxMessage, 0)},
		classSealed: first(firstLane, firstLane+1, firstLane+lanes-1),
		classOther: append(first(0, 5, 0x0f, 0x11, 0x12, 0x13, 0x1f, 0x30, 0xff),
			sized(noise.TypeInitiation, noise.MinInitiation-1, 0), []byte{noise.TypeInitiation},
			[]byte{1}, []byte{4, 0, 0, 0}, sized(2, minForeign-1, 0), append([]byte{3, 0, 1}, make([]byte, minForeign)...)),
	}
	for kind := range byte(maxForeign) {
		m[classForeign] = append(m[classForeign], sized(kind+1, minForeign, 0), sized(kind+1, 1400, 7))
	}
	for i := range sieveProof {
		b := sized(noise.TypeInitiation, noise.MinInitiation, 0)
		b[len(b)-1-i] = 1
		m[classProving] = append(m[classProving], b)
	}
	return m
}

// endMark looks like WireGuard's, and passes unless that is what is held back.
var endMark = append([]byte{1}, make([]byte, minForeign)...)

// never is an n for which one of 2^n practically never comes.
const never = 31

// TestFilterTellsTheClassesApart: the kernel's reading of a datagram is the worker's, for every class that is held back; what
// comes from a known address passes.
func TestFilterTellsTheClassesApart(t *testing.T) {
	for _, c := range []struct{ at, known, stranger string }{
		{"127.0.0.1", "127.0.0.2", "127.0.0.3"},
		{"::1", "::1", ""}, // loopback has no other
	} {
		at := netip.MustParseAddr(c.at)
		conns, err := ListenUDP(t.Context(), netip.AddrPortFrom(at, 0))
		if err != nil {
			if at.Is6() {
				t.Logf("no IPv6: %v", err)
				continue
			}
			t.Fatal(err)
		}
		sock := newSocket(conns[0])
		t.Cleanup(func() { sock.conn.Close() })
		to := sock.conn.LocalAddr().(*net.UDPAddr)
		open := func(from string) *net.UDPConn {
			conn, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, to)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			return conn
		}
		known := open(c.known)
		// arrives sends datagrams one by one, and after each a mark that always passes.
		held := classes
		arrives := func(from *net.UDPConn, b []byte) bool {
			t.Helper()
			mark := append([]byte{1, 0, 0, 0}, "a mark, as WireGuard's messages begin"...)
			if classForeign == held {
				mark = []byte("a mark, as nothing begins")
			}
			if _, err := from.Write(b); err != nil {
				t.Fatal(err)
			}
			if _, err := known.Write(mark); err != nil {
				t.Fatal(err)
			}
			_ = sock.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			buf := make([]byte, 4096)
			got := false
			for {
				n, err := sock.conn.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				if bytes.Equal(buf[:n], mark) {
					return got
				}
				got = got || bytes.HasPrefix(buf[:n], b) // equal ones may have been put together
			}
		}
		stranger, list := known, []netip.Addr{netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9")}
		if c.stranger != "" {
			stranger = open(c.stranger)
			for i := range 300 { // enough for a search by halves
				list = append(list, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}))
			}
			list = append(list, netip.MustParseAddr(c.known))
		}
		for held = range classes {
			var h holes
			h[held] = never
			if err := sock.filter(h.program(at.Is6(), list, nil)); err != nil {
				t.Fatal(err)
			}
			for sort, all := range sorts() {
				for _, b := range all {
					name := fmt.Sprintf("%v: class %d held back: %d bytes of %#x, class %d", at, held, len(b), b[0], sort)
					if is := classOf(b); is != sort {
						t.Errorf("%s: the worker takes it for %d", name, is)
					}
					if got := arrives(stranger, b); got == (sort == held) {
						t.Errorf("%s: from a stranger, arrives: %v", name, got)
					}
					if stranger != known && sort == held && !arrives(known, b) {
						t.Errorf("%s: from a known address it does not arrive", name)
					}
				}
			}
		}
		held = classes
		if err := sock.filter(nil); err != nil || !arrives(stranger, []byte{0xff}) {
			t.Errorf("%v: without a filter nothing arrives (%v)", at, err)
		}
		if err := sock.filter(nil); err != nil {
			t.Errorf("taking away what is not there: %v", err)
		}
	}
}

// TestFilterFindsEveryAddress searches lists of all lengths for what is in them, and for what is beside it.
func TestFilterFindsEveryAddress(t *testing.T) {
	conns, err := ListenUDP(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	sock := newSocket(conns[0])
	t.Cleanup(func() { sock.conn.Close() })
	to := sock.conn.LocalAddr().(*net.UDPAddr)
	from := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 1, 0, byte(i)}) }
	for _, n := range []int{0, 1, 2, 8, 9, 17, 40} {
		var list []netip.Addr
		for i := range n {
			list = append(list, from(2*i+1))
		}
		h := holes{never, never, never, never, never}
		h[classForeign] = 0 // they mark the end
		if err := sock.filter(h.program(false, list, nil)); err != nil {
			t.Fatal(err)
		}
		var got []netip.Addr
		for i := range 2*n + 2 {
			conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: from(i).AsSlice()}, to)
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range [][]byte{{0xff}, endMark} {
				if _, err := conn.Write(b); err != nil {
					t.Fatal(err)
				}
			}
			conn.Close()
			_ = sock.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			for buf := make([]byte, 64); ; {
				if _, _, err := sock.conn.ReadFromUDPAddrPort(buf); err != nil {
					t.Fatal(err)
				}
				if buf[0] == 1 {
					break
				}
				got = append(got, from(i))
			}
		}
		if !slices.Equal(got, list) {
			t.Errorf("of %v only %v pass", list, got)
		}
	}
}

// TestFloodOfStrangersIsHeldBack plays the whole of it on an engine that does not run: strangers are held back, where a peer
// is said to be things pass, and afterwards the socket is as it was.
func TestFloodOfStrangersIsHeldBack(t *testing.T) {
	e, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	conns, err := ListenUDP(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	conn := conns[0]
	t.Cleanup(func() { conn.Close() })
	if err := e.SetUDP(conns); err != nil {
		t.Fatal(err)
	}
	r := &remote{}
	r.link.peer.Endpoints = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.2:9")}
	e.peers = map[peer.ID]*remote{{1}: r}
	h, now := &e.handshakes, time.Unix(1, 0)
	step := func(n int) bool {
		now = now.Add(sievePeriod)
		for range n {
			h.sieve.saw([]byte{0xff})
		}
		h.refresh(now)
		return h.sift(now)
	}
	step(0)
	if step(sieveRate/4) || h.sieve.on() {
		t.Fatal("it is held back what need not be")
	}
	if !step(sieveRate<<8) || h.sieve.holes[classOther] == 0 {
		t.Fatal("nothing is held back")
	}
	send := func(from string, n int) (got int) {
		c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(from)}, conn.LocalAddr().(*net.UDPAddr))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		buf := make([]byte, 4096)
		for range n {
			for _, b := range [][]byte{{0xff, 0xff}, endMark} {
				if _, err := c.Write(b); err != nil {
					t.Fatal(err)
				}
			}
			_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			for {
				if _, err := conn.Read(buf); err != nil {
					t.Fatal(err)
				}
				if buf[0] == 1 {
					break
				}
				got++
			}
		}
		return got
	}
	const many = 500
	if n := send("127.0.0.2", many); n != many {
		t.Errorf("from where a peer is said to be %d of %d pass", n, many)
	}
	passed := send("127.0.0.3", many)
	if passed > many/2 { // one of a thousand
		t.Errorf("from a stranger %d of %d pass", passed, many)
	}
	if s := e.Stats(); s.Drops["flood"] != uint64(many-passed) || s.Drops["buffer"] != 0 || s.Flood < sieveRate<<8 {
		t.Errorf("%d were dropped by the kernel; counted are %v, of %d a second", many-passed, s.Drops, s.Flood)
	}
	if !step(0) || h.sieve.on() {
		t.Fatal("the flood is over and things are held back")
	}
	if n := send("127.0.0.3", many); n != many {
		t.Errorf("after the flood %d of %d pass", n, many)
	}
	if s := e.Stats(); s.Drops["flood"] != uint64(many-passed) || s.Flood != 0 {
		t.Errorf("after the flood are counted %v, of %d a second", s.Drops, s.Flood)
	}

	// What a full buffer costs is told apart, and a socket that was handed on begins at zero.
	if err := conn.SetReadBuffer(1); err != nil { // the least that the kernel gives
		t.Fatal(err)
	}
	from, err := net.DialUDP("udp4", nil, conn.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	for range many {
		if _, err := from.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := from.Write(endMark); err != nil {
		t.Fatal(err)
	}
	lost := e.Stats().Drops["buffer"]
	if lost == 0 || lost > many+1 || e.Stats().Drops["flood"] != uint64(many-passed) {
		t.Errorf("with a buffer for one %d of %d are counted as lost", lost, many)
	}
	if u := &newSocket(conn).unseen; u.last != uint32(many-passed)+uint32(lost) {
		t.Errorf("a new engine begins at %d, the kernel at %d", u.last, uint64(many-passed)+lost)
	}
}
