package path

import (
	"slices"

	"weft/mesh/peer"
)

// maxChains bounds the ways by two relays.
const maxChains = 4

// Chains are the ways by two relays to a peer that none of its relays can be reached from here for: the first one is any
// relay that carries for us, the second one of the peer's.
func Chains(relays, known []peer.ID, carries func(peer.ID) bool) []Path {
	var out []Path
	for _, first := range slices.Concat(relays, known) {
		if !carries(first) {
			continue
		}
		for _, second := range relays {
			p := Through(first, second)
			if second == first || carries(second) || slices.Contains(out, p) {
				continue
			}
			if out = append(out, p); len(out) == maxChains {
				return out
			}
		}
	}
	return out
}
