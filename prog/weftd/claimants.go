package weftd

import (
	"net/netip"
	"slices"

	"weft/mesh/peer"
	"weft/prog/wire"
	"weft/router"
)

// What members say about themselves reaches the wire as lists, which it takes whole or not at all. So what two members
// claim is settled before: a lie may cost the liar its own tunnel, never anybody else's.

// maxTunnelBlocks is how many blocks of one peer a wire takes.
const maxTunnelBlocks = 16384

// ownKeys leaves each sleeve key to one of the peers that claim it: to the one that holds it already, else to the first.
// The others are returned with the owner. A peer without a key is one whose record is not known: the wire keeps what it
// has of it.
func ownKeys(peers []wire.Peer, holds func(wire.Peer) bool) (kept []wire.Peer, liars map[peer.ID]peer.ID) {
	owner := make(map[[32]byte]peer.ID, len(peers))
	for _, p := range peers {
		if _, taken := owner[p.NoisePublic]; !taken || holds(p) {
			owner[p.NoisePublic] = p.ID
		}
	}
	liars = map[peer.ID]peer.ID{}
	kept = slices.DeleteFunc(slices.Clone(peers), func(p wire.Peer) bool {
		if p.NoisePublic == [32]byte{} || owner[p.NoisePublic] == p.ID {
			return false
		}
		liars[p.ID] = owner[p.NoisePublic]
		return true
	})
	return kept, liars
}

// ownBlocks leaves each block to one tunnel: to the one that did not have it before, because a block that moved is still
// in a tunnel that is about to close.
func ownBlocks(tunnels []router.Tunnel, before map[netip.Prefix]peer.ID) ([]router.Tunnel, map[netip.Prefix]peer.ID) {
	owner := make(map[netip.Prefix]peer.ID)
	for _, t := range tunnels {
		for _, b := range t.Blocks {
			if other, taken := owner[b]; !taken || before[b] == other {
				owner[b] = t.Peer
			}
		}
	}
	kept := slices.Clone(tunnels)
	for i, t := range kept {
		mine := make([]netip.Prefix, 0, len(t.Blocks))
		for _, b := range t.Blocks {
			if owner[b] == t.Peer && !slices.Contains(mine, b) && len(mine) < maxTunnelBlocks {
				mine = append(mine, b)
			}
		}
		if len(mine) < len(t.Blocks) {
			kept[i].Blocks = mine
		}
	}
	return kept, owner
}

// dialable reports whether a member may be looked for at an endpoint that it named. What is in the pools would be a path
// through the overlay to itself; what only this machine can reach would let a member knock at our own doors.
func dialable(ap netip.AddrPort, pools []netip.Prefix) bool {
	a := ap.Addr().Unmap()
	return ap.Port() != 0 && a.IsGlobalUnicast() && a.Zone() == "" &&
		!slices.ContainsFunc(pools, func(p netip.Prefix) bool { return p.Contains(a) })
}
