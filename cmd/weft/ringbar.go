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

// ringBars draws for each owner where in the pools its blocks lie: one line as wide as the screen, of which each column is
// an equal part of all IPv4 addresses (of the IPv6 ones where there are no others).
//
//	alpha  ████████················   33.3 %
//	beta   ········████············   16.7 %
//	gamma  ············▒▒██████████   50.0 %
func ringBars(blocks []control.Block, s screen) []string {
	four := slices.ContainsFunc(blocks, func(b control.Block) bool { return b.Prefix.Addr().Is4() })
	blocks = slices.DeleteFunc(slices.Clone(blocks), func(b control.Block) bool { return b.Prefix.Addr().Is4() != four })
	slices.SortFunc(blocks, func(a, b control.Block) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) })
	total := 0.0
	owned := make(map[string]float64)
	names := make(map[string]string)
	widest := 0
	for _, b := range blocks {
		size := sizeOf(b.Prefix)
		total += size
		owned[b.Owner] += size
		names[b.Owner] = cmp.Or(b.OwnerName, short(b.Owner))
		widest = max(widest, utf8.RuneCountInString(names[b.Owner]))
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
