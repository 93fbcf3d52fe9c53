package main

import (
	"net/netip"
	"strings"
	"testing"

	"weft/prog/control"
)

func TestRingBars(t *testing.T) {
	block := func(prefix, owner string) control.Block {
		return control.Block{Prefix: netip.MustParsePrefix(prefix), Owner: owner, OwnerName: owner}
	}
	// 22 columns: name, two blanks, eight for the bar, nine for the share.
	for _, tt := range []struct {
		name    string
		columns int
		blocks  []control.Block
		want    string
	}{
		{"halves and quarters", 22, []control.Block{block("10.32.0.0/13", "a"), block("10.40.0.0/14", "bcd"), block("10.44.0.0/14", "a")}, `
a    ████··██   75.0 %
bcd  ····██··   25.0 %`},
		{"several blocks of one owner, in any order", 22, []control.Block{
			block("10.44.0.0/14", "a"), block("10.32.0.0/14", "a"), block("10.36.0.0/14", "bcd"), block("10.40.0.0/14", "bcd"),
		}, `
a    ██····██   50.0 %
bcd  ··████··   50.0 %`},
		{"a block smaller than a column is seen", 22, []control.Block{block("10.0.0.0/26", "bcd"), block("10.0.0.64/26", "a"), block("10.0.0.128/25", "a"), block("10.0.1.0/24", "a"), block("10.0.2.0/23", "a")}, `
a    ▒███████   93.8 %
bcd  ▒·······    6.2 %`},
		{"each pool by itself", 22, []control.Block{
			block("172.24.0.0/21", "bcd"), block("172.24.8.0/21", "a"), block("10.9.0.0/29", "a"), block("10.9.0.8/29", "bcd"),
			block("10.20.0.64/26", "a"), block("10.20.0.128/26", "a"),
		}, `
10.9.0.0/28
a    ████····   50.0 %
bcd  ····████   50.0 %

10.20.0.64 to 10.20.0.191
a    ████████  100.0 %

172.24.0.0/20
a    ····████   50.0 %
bcd  ████····   50.0 %`},
		{"a native IPv6 pool", 22, []control.Block{block("fd77::/49", "a"), block("fd77:0:0:8000::/49", "bcd")}, `
a    ████····   50.0 %
bcd  ····████   50.0 %`},
		{"linked IPv6 blocks are no space of their own", 22, []control.Block{block("10.0.0.0/25", "bcd"), block("fd00::/121", "bcd"), block("10.0.0.128/25", "a")}, `
a    ····████   50.0 %
bcd  ████····   50.0 %`},
		{"a screen without room", 13, []control.Block{block("10.0.0.0/24", "bcd")}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := strings.Join(ringBars(tt.blocks, screen{columns: tt.columns}), "\n")
			if want := strings.TrimPrefix(tt.want, "\n"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}
