package sleeve

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"pgregory.net/rapid"

	"weft/crypto/noise"
)

// TestSieveLetsAFewThousandPass plays floods of any strength: after a second no more of a class passes than is meant to, none
// of a class that is not flooded is held back, and when the flood is over everything passes again.
func TestSieveLetsAFewThousandPass(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := class(rapid.IntRange(0, int(classes)-1).Draw(t, "class"))
		flood := rapid.Float64Range(0, sieveRate<<sieveFinest).Draw(t, "datagrams a second")
		var h holes
		passes := func() (seen [classes]uint32) {
			seen[c] = uint32(flood * sievePeriod.Seconds() / float64(uint(1)<<h[c]))
			return seen
		}
		for range 4 {
			h = h.next(passes(), sievePeriod)
		}
		if n := float64(passes()[c]) / sievePeriod.Seconds(); n > sieveMost || n < sieveLeast && h[c] > 0 {
			t.Fatalf("of %.0f a second %.0f pass, with %v", flood, n, h)
		}
		for other, n := range h {
			if class(other) != c && n != 0 {
				t.Fatalf("a flood of class %d closes class %d", c, other)
			}
		}
		if again := h.next(passes(), sievePeriod); again != h {
			t.Fatalf("it does not come to rest: %v, %v", h, again)
		}
		flood = 0
		if h = h.next(passes(), sievePeriod); h != (holes{}) {
			t.Fatalf("after the flood %v", h)
		}
	})
}

// TestSieveLooksAtAFlood: what comes in over hours is no flood, what comes in a quarter of a second may be one.
func TestSieveLooksAtAFlood(t *testing.T) {
	s := sieve{rung: make(chan struct{}, 1)}
	now := time.Unix(0, 0)
	junk := func(n int) {
		for range n {
			s.saw([]byte{0xff})
		}
	}
	junk(100_000)
	if len(s.rung) != 1 {
		t.Error("nobody is told to look")
	}
	if now = now.Add(time.Hour); s.look(nil, nil, 7, now) || s.on() || s.rate.Load() != 0 {
		t.Fatal("an hour's junk is taken for a flood")
	}
	junk(sieveRate)
	if s.look(nil, nil, 7, now.Add(sievePeriod/2)) {
		t.Fatal("it looks too soon")
	}
	if now = now.Add(sievePeriod); !s.look(nil, nil, 7, now) || s.holes != (holes{classOther: 2}) {
		t.Fatalf("four times too much: %v", s.holes)
	}
	if rate := s.rate.Load(); rate != 4*sieveRate {
		t.Errorf("%d a second, of which all were seen", rate)
	}
	a := []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	junk(sieveRate / 4)
	if now = now.Add(sievePeriod); !s.look(a, nil, 7+3*sieveRate/4, now) {
		t.Error("somebody new is not let through")
	}
	if rate := s.rate.Load(); rate != 4*sieveRate {
		t.Errorf("%d a second, of which a quarter was seen", rate)
	}
	junk(sieveRate / 4)
	if now = now.Add(sievePeriod); s.look(a, nil, 7+3*sieveRate/4, now) {
		t.Error("the filter is fitted anew for nothing")
	}
	if now = now.Add(time.Minute); !s.look(a, nil, 7+3*sieveRate/4, now) || s.on() || s.rate.Load() != 0 {
		t.Error("the flood is over and things are held back")
	}
}

func TestFilterKnowsSessionsFirst(t *testing.T) {
	many := func(first byte) (all []netip.Addr) {
		for i := range 700 {
			all = append(all, netip.AddrFrom4([4]byte{first, 0, byte(i >> 8), byte(i)}))
		}
		return all
	}
	all := listed(many(192), append(many(10), many(10)...))
	if len(all) != sieveKnown || !slices.IsSortedFunc(all, netip.Addr.Compare) {
		t.Fatalf("%d addresses", len(all))
	}
	for _, a := range many(192) {
		if !slices.Contains(all, a) {
			t.Fatalf("%v has a session and is left out", a)
		}
	}
	recorded := make([]uint32, sieveWords)
	for i := range recorded {
		recorded[i] = uint32(i) << 12
	}
	for _, v6 := range []bool{false, true} {
		for name, p := range map[string][]bpf.Instruction{
			"many addresses":  holes{1, 1, 1, 1, 1}.program(v6, all, recorded[:sieveWords-len(all)]),
			"many recordings": holes{1, 1, 1, 1, 1}.program(v6, nil, recorded),
		} {
			if code, err := bpf.Assemble(p); err != nil || len(code) > 4096 {
				t.Errorf("%s: a program of %d steps, %v", name, len(code), err)
			}
		}
	}
}

// FuzzClassOf: whatever comes has a class, and what is WireGuard's, has the type of a handshake, or seems sealed has the right one.
func FuzzClassOf(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, noise.MinInitiation))
	f.Add(append([]byte{noise.TypeInitiation}, make([]byte, noise.MinInitiation)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := classOf(b)
		switch {
		case isForeign(b) != (c == classForeign), c >= classes:
			t.Fatalf("%x is %d", b[:min(len(b), 4)], c)
		case noise.Type(b) == noise.TypeInitiation && (c == classBare) != noise.Bare(b):
			t.Fatalf("a handshake is %d", c)
		}
		if _, sealed := parseHeader(b); sealed && c != classSealed {
			t.Fatalf("a sealed datagram is %d", c)
		}
	})
}
