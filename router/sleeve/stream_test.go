package sleeve

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"
)

// FuzzStream: what a stream is cut into is what was put in, in order, however much of it has arrived.
func FuzzStream(f *testing.F) {
	f.Add([]byte{0, 2, 1, 2, 0, 0, 0, 9, 1})
	f.Add([]byte{0xff, 0xff})
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var again []byte
		rest := b
		for {
			d, after, ok := cutStream(rest)
			if !ok {
				break
			}
			if len(after) >= len(rest) {
				t.Fatal("no progress")
			}
			again = append(binary.BigEndian.AppendUint16(again, uint16(len(d))), d...)
			rest = after
		}
		if !bytes.Equal(append(again, rest...), b) {
			t.Errorf("%x came out as %x", b, again)
		}
		if len(rest) > streamHeader+0xffff {
			t.Errorf("%d bytes wait for the rest of a datagram", len(rest))
		}
	})
}

// FuzzEcho: an answer to a probe survives being read and written, and a short one is known as an old build's.
func FuzzEcho(f *testing.F) {
	for _, e := range []echo{
		{},
		{probe: probe{1, 2}, observed: netip.MustParseAddrPort("192.0.2.1:6783"), received: 9},
		{probe: probe{3, 4}, observed: netip.MustParseAddrPort("[2001:db8::1]:1")},
	} {
		f.Add(e.append(nil))
	}
	f.Add([]byte{0, 0, 0, 1, 0, 2})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, ok := parseEcho(b)
		if !ok || e.plain {
			if ok != (len(b) >= probeSize) || e.observed.IsValid() {
				t.Errorf("%x read as %+v, %v", b, e, ok)
			}
			return
		}
		if again, ok := parseEcho(e.append(nil)); !ok || again != e {
			t.Errorf("%+v came back as %+v", e, again)
		}
	})
}

// TestAStreamTakesOnlySoMuch: who does not read is sent no more, and nobody waits for it.
func TestAStreamTakesOnlySoMuch(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	s := &stream{conn: here, wake: make(chan struct{}, 1)}
	defer s.close()
	d := make([]byte, 1000)
	refused := 0
	for range 1000 {
		refused += s.put(d, len(d))
	}
	if taken := 1000 - refused; len(s.queue) > streamQueue || taken < streamQueue/len(d)-2 {
		t.Errorf("%d taken, %d bytes wait", taken, len(s.queue))
	}
	if s.close(); s.put(d, 500) != 2 {
		t.Error("a closed stream takes datagrams")
	}
}

// TestStreamsMakeRoom: connections that bring nothing cannot keep others out, nor grow without bound.
func TestStreamsMakeRoom(t *testing.T) {
	var all streams
	var made []*stream
	at := func(i int) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i+1)) }
	for i := range 3 * maxUnproven {
		here, there := net.Pipe()
		t.Cleanup(func() { here.Close(); there.Close() })
		s := &stream{conn: here, at: at(i), made: int64(i + 1), wake: make(chan struct{}, 1)}
		if !all.add(s) {
			t.Fatalf("no room for %d", i)
		}
		made = append(made, s)
	}
	if n := len(all.open); n != maxUnproven {
		t.Errorf("%d streams that brought nothing", n)
	}
	if !made[0].gone() || made[len(made)-1].gone() {
		t.Error("not the oldest was closed")
	}
	for i := range maxOpen {
		here, there := net.Pipe()
		t.Cleanup(func() { here.Close(); there.Close() })
		s := &stream{conn: here, at: at(1000 + i), made: int64(1000 + i), wake: make(chan struct{}, 1)}
		s.last.Store(int64(time.Second))
		all.add(s)
	}
	if n := len(all.open); n > maxOpen {
		t.Errorf("%d streams", n)
	}
	for _, s := range all.open {
		if s.last.Load() == 0 {
			t.Fatal("one that brought nothing kept its place")
		}
	}
}
