package host

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/bpf"
)

// Gate says what a device may bring: of IP only what goes one of the ways that it lists. It stands in the device itself, so
// it is there when nftables was flushed. Other protocols, which nobody forwards, are not its business.
type Gate struct {
	Link string
	Open []Passage // no two alike; no longer than what a program holds, or the kernel is asked for policy rules instead
}

// Passage is a source and a destination, of one family, that go together.
type Passage struct{ From, To netip.Prefix }

// String names the gate with all that it lets pass, in one order.
func (g Gate) String() string {
	ways := slices.SortedFunc(slices.Values(g.Open), func(a, b Passage) int {
		return cmp.Or(a.From.Compare(b.From), a.To.Compare(b.To))
	})
	var b strings.Builder
	b.WriteString(g.Link)
	for _, w := range ways {
		b.WriteString(" from " + w.From.String() + " to " + w.To.String())
	}
	return b.String()
}

// What a program of the kernel's traffic control answers: to go on as if there were none, or to drop.
const (
	gatePass = 0xffffffff // TC_ACT_UNSPEC
	gateDrop = 2          // TC_ACT_SHOT
)

const (
	// gateSize bounds a program (BPF_MAXINSNS).
	gateSize = 4096
	// networkHeader makes an offset one from the IP header, whatever stands before it on this kind of device (SKF_NET_OFF).
	networkHeader = 0xfff00000

	etherIPv4, etherIPv6 = 0x0800, 0x86dd
)

// program is the gate as the kernel's classic filter language has it. ok is false when it would be too long.
//
//	protocol IPv4?  no: go on below
//	  for each passage: source and destination in it? pass
//	  drop
//	protocol IPv6?  no: pass
//	  the same
func (g Gate) program() (raw []bpf.RawInstruction, ok bool) {
	four, six := []bpf.Instruction{}, []bpf.Instruction{}
	for _, p := range g.Open {
		if p.From.Addr().Is4() {
			four = append(four, p.check(12, 16)...)
		} else {
			six = append(six, p.check(8, 24)...)
		}
	}
	four, six = append(four, bpf.RetConstant{Val: gateDrop}), append(six, bpf.RetConstant{Val: gateDrop})
	all := slices.Concat([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtProto},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherIPv4, SkipTrue: 1},
		bpf.Jump{Skip: uint32(len(four))},
	}, four, []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherIPv6, SkipTrue: 1},
		bpf.RetConstant{Val: gatePass},
	}, six)
	if len(all) > gateSize {
		return nil, false
	}
	raw, err := bpf.Assemble(all)
	return raw, err == nil
}

// check passes what has its source, which is so far into the IP header, and its destination in p, and goes on otherwise.
func (p Passage) check(from, to int) []bpf.Instruction {
	words := append(wordsOf(p.From, from), wordsOf(p.To, to)...)
	var out []bpf.Instruction
	for _, w := range slices.Backward(words) { // from the end, as each has to know how far it is to there
		one := []bpf.Instruction{bpf.LoadAbsolute{Off: networkHeader + uint32(w.offset), Size: 4}}
		if w.mask != 0xffffffff {
			one = append(one, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: w.mask})
		}
		one = append(one, bpf.JumpIf{Cond: bpf.JumpEqual, Val: w.value, SkipFalse: uint8(len(out) + 1)})
		out = append(one, out...)
	}
	return append(out, bpf.RetConstant{Val: gatePass})
}

// word is four bytes of a header that are to have a value where mask has ones.
type word struct {
	offset      int
	mask, value uint32
}

// wordsOf are those that tell whether an address is in a prefix.
func wordsOf(p netip.Prefix, offset int) (words []word) {
	b := p.Masked().Addr().AsSlice()
	for i, left := 0, p.Bits(); left > 0; i, left = i+4, left-32 {
		mask := ^uint32(0)
		if left < 32 {
			mask <<= 32 - left
		}
		words = append(words, word{offset + i, mask, binary.BigEndian.Uint32(b[i:])})
	}
	return words
}
