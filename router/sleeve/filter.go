package sleeve

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/net/bpf"

	"weft/crypto/noise"
)

// Where things are for a socket filter: it sees a datagram from the UDP header on, and all of it that was put together; the
// IP header is at negative offsets.
const (
	sieveHeader = 8
	sieveKey    = sieveHeader + 4           // the ephemeral key of a handshake, which is its own
	sieveProof  = 16                        // bytes at the end of a handshake; zeros prove nothing
	sieveNet    = ^uint32(0) - 0x100000 + 1 // SKF_NET_OFF
)

var (
	sievePass = bpf.RetConstant{Val: 1 << 18}
	sieveDrop = bpf.RetConstant{Val: 0}
)

// program is the filter of a socket of one family.
func (h holes) program(v6 bool, known []netip.Addr, recorded []uint32) []bpf.Instruction {
	var words []uint32
	for _, a := range known {
		if a.Is6() == v6 {
			words = append(words, wordOf(a))
		}
	}
	slices.Sort(words)
	p := loadSource(v6)
	p = append(p, search(slices.Compact(words), sievePass, 0)...)

	other, sealed, bare, proving := h.draw(classOther), h.draw(classSealed), h.draw(classBare), h.draw(classProving)
	foreign := h.draw(classForeign)
	shake := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: sieveHeader + noise.MinInitiation, SkipTrue: uint8(len(other))},
	}
	shake = append(shake, other...)
	if len(recorded) > 0 {
		shake = append(shake, bpf.LoadAbsolute{Off: sieveKey, Size: 4})
		shake = append(shake, search(recorded, sieveDrop, 0)...)
	}
	shake = append(shake, bpf.LoadExtension{Num: bpf.ExtLen}, bpf.ALUOpConstant{Op: bpf.ALUOpSub, Val: sieveProof}, bpf.TAX{})
	for word := range uint32(sieveProof / 4) {
		left := sieveProof/4 - 1 - word
		shake = append(shake, bpf.LoadIndirect{Off: 4 * word, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: uint8(2*left) + uint8(len(bare))})
	}
	shake = slices.Concat(shake, bare, proving)

	p = append(p,
		bpf.LoadAbsolute{Off: sieveHeader, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(noise.TypeInitiation), SkipTrue: 1}, bpf.Jump{Skip: uint32(len(shake))})
	p = append(p, shake...)
	rest := len(foreign) + len(sealed)
	p = append(p,
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: firstLane + lanes, SkipTrue: uint8(8 + rest)},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: firstLane, SkipTrue: uint8(7 + len(foreign))},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: maxForeign, SkipTrue: uint8(6 + rest)},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: uint8(5 + rest)},
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: sieveHeader + minForeign, SkipFalse: uint8(3 + rest)},
		bpf.LoadAbsolute{Off: sieveHeader, Size: 4},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 1<<24 - 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipFalse: uint8(rest)})
	return slices.Concat(p, foreign, sealed, other)
}

// loadSource leaves the folded source address in A.
func loadSource(v6 bool) []bpf.Instruction {
	if !v6 {
		return []bpf.Instruction{bpf.LoadAbsolute{Off: sieveNet + 12, Size: 4}}
	}
	p := []bpf.Instruction{bpf.LoadAbsolute{Off: sieveNet + 8, Size: 4}}
	for word := range uint32(3) {
		p = append(p, bpf.TAX{}, bpf.LoadAbsolute{Off: sieveNet + 12 + 4*word, Size: 4}, bpf.ALUOpX{Op: bpf.ALUOpXor})
	}
	return p
}

// wordOf makes a word of an address. Two that fall together both pass, and are told apart by the worker.
func wordOf(a netip.Addr) (word uint32) {
	b := a.AsSlice()
	for ; len(b) > 0; b = b[4:] {
		word ^= binary.BigEndian.Uint32(b)
	}
	return word
}

// search ends with a verdict if A is one of the words, which are sorted, by halves; else it goes on, after so many more
// instructions.
func search(words []uint32, verdict bpf.Instruction, after int) []bpf.Instruction {
	const few = 8
	if len(words) > few {
		half := len(words) / 2
		high := search(words[half:], verdict, after)
		low := search(words[:half], verdict, after+len(high))
		return slices.Concat([]bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: words[half], SkipFalse: 1}, bpf.Jump{Skip: uint32(len(low))},
		}, low, high)
	}
	var p []bpf.Instruction
	for _, w := range words {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: w, SkipFalse: 1}, verdict)
	}
	return append(p, bpf.Jump{Skip: uint32(after)})
}

// draw passes one of 2^n.
func (h holes) draw(c class) []bpf.Instruction {
	if h[c] == 0 {
		return []bpf.Instruction{sievePass}
	}
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtRand},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 1<<h[c] - 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
		sieveDrop,
		sievePass,
	}
}
