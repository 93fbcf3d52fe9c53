package host

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"pgregory.net/rapid"
)

// run is the kernel's interpreter, as far as gates need it: header is the packet from its IP header on.
func run(t *rapid.T, program []bpf.RawInstruction, protocol uint32, header []byte) uint32 {
	var a uint32
	for pc := 0; pc < len(program); pc++ {
		switch in := program[pc]; {
		case in.Op == 0x20 && in.K == 0xfffff000: // ld proto
			a = protocol
		case in.Op == 0x20 && in.K >= networkHeader && int(in.K-networkHeader)+4 <= len(header):
			a = binary.BigEndian.Uint32(header[in.K-networkHeader:])
		case in.Op == 0x54:
			a &= in.K
		case in.Op == 0x15 && a == in.K:
			pc += int(in.Jt)
		case in.Op == 0x15:
			pc += int(in.Jf)
		case in.Op == 0x05:
			pc += int(in.K)
		case in.Op == 0x06:
			return in.K
		default:
			t.Fatalf("instruction %d: %+v, with a header of %d bytes", pc, in, len(header))
		}
	}
	t.Fatal("the program does not end")
	return 0
}

// A gate lets pass what goes one of its ways, drops all other IP, and leaves other protocols alone.
func TestAGateOpensForItsPassagesOnly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		address := func(six bool, label string) netip.Addr {
			// Few bits differ, so that many are near a prefix's edge.
			n := rapid.SampledFrom([]uint32{0, 1, 2, 0x80, 0x100, 0x8000, 0x10000, 0x400000, 0x80000000}).Draw(t, label)
			b := [16]byte{0xfd, 0x77, 11: 1}
			binary.BigEndian.PutUint32(b[12:], 0x0a200000^n)
			if rapid.Bool().Draw(t, label+" far") {
				b[rapid.IntRange(0, 11).Draw(t, label+" where")] ^= 1
			}
			if six {
				return netip.AddrFrom16(b)
			}
			return netip.AddrFrom4([4]byte(b[12:]))
		}
		g := Gate{Link: "weft-vx"}
		for range rapid.IntRange(0, 4).Draw(t, "passages") {
			six := rapid.Bool().Draw(t, "six")
			prefix := func(label string) netip.Prefix {
				a := address(six, label)
				return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, label+" bits")).Masked()
			}
			g.Open = append(g.Open, Passage{prefix("from"), prefix("to")})
		}
		program, ok := g.program()
		if !ok {
			t.Fatalf("%s: too long", g)
		}
		six := rapid.Bool().Draw(t, "packet six")
		from, to := address(six, "source"), address(six, "destination")
		header, protocol := slices.Concat(make([]byte, 12), from.AsSlice(), to.AsSlice()), uint32(etherIPv4)
		if six {
			header, protocol = header[4:], etherIPv6
		}
		want := uint32(gateDrop)
		if slices.ContainsFunc(g.Open, func(p Passage) bool { return p.From.Contains(from) && p.To.Contains(to) }) {
			want = gatePass
		}
		if got := run(t, program, protocol, header); got != want {
			t.Fatalf("%s: %s to %s: %#x, want %#x", g, from, to, got, want)
		}
		if got := run(t, program, 0x0806, nil); got != gatePass {
			t.Fatalf("ARP: %#x", got)
		}
	})
}

func TestAGateKnowsHowMuchAProgramHolds(t *testing.T) {
	gate := func(n int) Gate {
		g := Gate{Link: "weft-vx"}
		for i := range n {
			g.Open = append(g.Open, Passage{netip.MustParsePrefix("10.32.0.0/12"), netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 32, byte(i >> 8), byte(i)}), 32)})
		}
		return g
	}
	if program, ok := gate(600).program(); !ok || len(program) > gateSize {
		t.Errorf("600 passages: %d instructions, %t", len(program), ok)
	}
	if _, ok := gate(700).program(); ok {
		t.Error("700 passages fit")
	}
}

func TestAGateHasOneName(t *testing.T) {
	a := Passage{netip.MustParsePrefix("10.32.0.0/12"), netip.MustParsePrefix("10.32.4.0/22")}
	b := Passage{netip.MustParsePrefix("fd77::/96"), netip.MustParsePrefix("fd77::a20:400/118")}
	one, other := Gate{"weft-vx", []Passage{a, b}}, Gate{"weft-vx", []Passage{b, a}}
	if one.String() != other.String() || !strings.Contains(one.String(), "from 10.32.0.0/12 to 10.32.4.0/22 from fd77::/96") {
		t.Errorf("%s, %s", one, other)
	}
	if one.String() == (Gate{"weft-vx", []Passage{a}}).String() {
		t.Error("two gates have one name")
	}
}
