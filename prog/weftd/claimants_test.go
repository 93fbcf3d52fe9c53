package weftd

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"weft/mesh/peer"
	"weft/prog/wire"
	"weft/router"
)

// TestOwnersProperty: whatever is claimed, nothing is there twice, nobody without a lie loses anything, and who held a key
// holds it still.
func TestOwnersProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var peers []wire.Peer
		claims := map[byte]int{}
		for i := range rapid.IntRange(0, 20).Draw(t, "peers") {
			key := rapid.ByteRange(0, 8).Draw(t, "key")
			claims[key]++
			peers = append(peers, wire.Peer{ID: peer.ID{byte(i + 1)}, NoisePublic: [32]byte{key}})
		}
		held := rapid.MapOf(rapid.ByteRange(1, 8), rapid.ByteRange(1, 20)).Draw(t, "held")
		holds := func(p wire.Peer) bool { return p.ID == peer.ID{held[p.NoisePublic[0]]} }
		kept, liars := ownKeys(peers, holds)
		if len(kept)+len(liars) != len(peers) {
			t.Fatalf("%d kept, %d left out of %d", len(kept), len(liars), len(peers))
		}
		seen := map[[32]byte]bool{}
		for _, p := range kept {
			if seen[p.NoisePublic] && p.NoisePublic != [32]byte{} {
				t.Fatal("a key is there twice")
			}
			seen[p.NoisePublic] = true
		}
		for _, p := range peers {
			owner, out := liars[p.ID]
			if out && (claims[p.NoisePublic[0]] == 1 || p.NoisePublic == [32]byte{} || holds(p) || owner == p.ID) {
				t.Fatalf("%v is left out for %v", p, owner)
			}
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		var tunnels []router.Tunnel
		before := map[netip.Prefix]peer.ID{}
		claims := map[netip.Prefix]peer.Set{}
		for i := range rapid.IntRange(0, 6).Draw(t, "tunnels") {
			id := peer.ID{byte(i + 1)}
			var blocks []netip.Prefix
			for _, n := range rapid.SliceOfN(rapid.ByteRange(0, 9), 0, 6).Draw(t, "blocks") {
				b := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, n}), 24)
				blocks = append(blocks, b)
				if claims[b] == nil {
					claims[b] = peer.Set{}
				}
				claims[b].Add(id)
				before[b] = peer.ID{rapid.ByteRange(1, 6).Draw(t, "before")}
			}
			tunnels = append(tunnels, router.Tunnel{Peer: id, Blocks: blocks})
		}
		kept, owners := ownBlocks(tunnels, before)
		has := map[netip.Prefix]peer.ID{}
		for _, tunnel := range kept {
			for _, b := range tunnel.Blocks {
				if other, twice := has[b]; twice {
					t.Fatalf("%s is of %s and %s", b, other, tunnel.Peer)
				}
				has[b] = tunnel.Peer
			}
		}
		for b, ids := range claims {
			if has[b] != owners[b] || !ids.Has(has[b]) {
				t.Fatalf("%s has no owner", b)
			}
			if len(ids) == 2 && ids.Has(before[b]) && has[b] == before[b] {
				t.Fatalf("%s moved, and its former owner has it", b)
			}
		}
	})
}

func TestDialable(t *testing.T) {
	pools := []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12"), netip.MustParsePrefix("fd00:1::/96")}
	for at, want := range map[string]bool{
		"192.0.2.1:6783": true, "10.1.2.3:1": true, "[2001:db8::1]:6783": true, "[fd00:2::1]:6783": true, "[::ffff:192.0.2.1]:1": true,
		"192.0.2.1:0": false, "127.0.0.1:6782": false, "[::1]:22": false, "0.0.0.0:6783": false, "224.0.0.1:1": false,
		"255.255.255.255:1": false, "[fe80::1%eth0]:6783": false, "10.32.0.1:6783": false, "[fd00:1::a20:1]:6783": false,
		"[::ffff:127.0.0.1]:1": false, "[::ffff:10.32.0.1]:1": false,
	} {
		if got := dialable(netip.MustParseAddrPort(at), pools); got != want {
			t.Errorf("%s: %v, want %v", at, got, want)
		}
	}
}
