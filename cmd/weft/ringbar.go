package main

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"weft/prog/control"
)

// ringBars draws for each pool and owner where in it the owner's blocks lie: one line as wide as the screen, of which each
// column is an equal part of the pool. Where there are several pools each has a line with its name first.
//
//	alpha  ████████················   33.3 %
//	beta   ········████············   16.7 %
//	gamma  ············▒▒██████████   50.0 %
func ringBars(blocks []control.Block, s screen) []string {
	four := slices.ContainsFunc(blocks, func(b control.Block) bool { return b.Prefix.Addr().Is4() })
	blocks = slices.DeleteFunc(slices.Clone(blocks), func(b control.Block) bool { return b.Prefix.Addr().Is4() != four })
	slices.SortFunc(blocks, func(a, b control.Block) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) })
	widest := 0
	for _, b := range blocks {
		widest = max(widest, utf8.RuneCountInString(ownerOf(b)))
	}
	pools := poolsOf(blocks)
	var lines []string
	for _, pool := range pools {
		bars := poolBars(pool, widest, s)
		if len(pools) > 1 && len(bars) > 0 {
			if len(lines) > 0 {
				lines = append(lines, "")
			}
			lines = append(lines, s.paint(spanned(pool), bold))
		}
		lines = append(lines, bars...)
	}
	return lines
}

func ownerOf(b control.Block) string { return cmp.Or(b.OwnerName, short(b.Owner)) }

// poolsOf cuts blocks in ascending order where addresses between them are missing: every address of a pool is somebody's.
func poolsOf(blocks []control.Block) (pools [][]control.Block) {
	begin := 0
	for i := 1; i <= len(blocks); i++ {
		if i == len(blocks) || lastOf(blocks[i-1].Prefix).Next() != blocks[i].Prefix.Addr() {
			pools = append(pools, blocks[begin:i])
			begin = i
		}
	}
	return pools
}

// spanned names a pool: the network that its blocks fill, or from where to where they lie when that is no network.
func spanned(pool []control.Block) string {
	first, last := pool[0].Prefix.Addr(), lastOf(pool[len(pool)-1].Prefix)
	for bits := range pool[0].Prefix.Bits() + 1 {
		if p := netip.PrefixFrom(first, bits); p == p.Masked() && lastOf(p) == last {
			return p.String()
		}
	}
	return first.String() + " to " + last.String()
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < p.Addr().BitLen(); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// poolBars draws one pool.
func poolBars(blocks []control.Block, widest int, s screen) []string {
	total := 0.0
	owned := make(map[string]float64)
	names := make(map[string]string)
	for _, b := range blocks {
		size := sizeOf(b.Prefix)
		total += size
		owned[b.Owner] += size
		names[b.Owner] = ownerOf(b)
	}
	const percent = len("  100.0 %")
	cells := s.columns - widest - 2 - percent
	if cells < 1 {
		return nil
	}
	// filled is which part of each column an owner has.
	filled := make(map[string][]float64)
	at := 0.0
	for _, b := range blocks {
		row := filled[b.Owner]
		if row == nil {
			row = make([]float64, cells)
			filled[b.Owner] = row
		}
		end := at + sizeOf(b.Prefix)/total*float64(cells)
		for i := int(at); i < cells && float64(i) < end; i++ {
			row[i] += min(end, float64(i+1)) - max(at, float64(i))
		}
		at = end
	}
	owners := make([]string, 0, len(owned))
	for id := range owned {
		owners = append(owners, id)
	}
	slices.SortFunc(owners, func(a, b string) int { return cmp.Or(cmp.Compare(names[a], names[b]), cmp.Compare(a, b)) })
	var lines []string
	for _, id := range owners {
		var bar strings.Builder
		for _, part := range filled[id] {
			bar.WriteRune(shade(part))
		}
		name := names[id] + strings.Repeat(" ", widest-utf8.RuneCountInString(names[id]))
		lines = append(lines, fmt.Sprintf("%s  %s  %5.1f %%", s.paint(name, bold), s.paint(bar.String(), good), owned[id]/total*100))
	}
	return lines
}

// shade is a column of which a part is owned.
func shade(part float64) rune {
	const nearly = 0.999 // sums of fractions
	switch {
	case part >= nearly:
		return '█'
	case part > 0.5:
		return '▓'
	case part > 0:
		return '▒'
	}
	return '·'
}

// sizeOf counts the addresses of a prefix, as exactly as a picture needs.
func sizeOf(p netip.Prefix) float64 {
	return math.Ldexp(1, p.Addr().BitLen()-p.Bits())
}
