package sleeve

import (
	"testing"

	"weft/mesh/peer"
)

// What was dropped of a peer stays counted when it is removed: a sum that goes back is read as a start from zero, and as all
// of it having happened since.
func TestDropsOfARemovedPeerStayCounted(t *testing.T) {
	e, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.SetIdentity(Identity{ID: peer.ID{1}, NoisePrivate: [32]byte{1}, Counter: 1}); err != nil {
		t.Fatal(err)
	}
	one, two := Peer{ID: peer.ID{2}, NoisePublic: [32]byte{2}}, Peer{ID: peer.ID{3}, NoisePublic: [32]byte{3}}
	total := func() (n uint64) {
		s := e.Stats()
		for _, p := range s.Peers {
			n += p.Drops[dropReplay.String()]
		}
		return n + s.Gone[dropReplay.String()]
	}
	set := func(peers ...Peer) {
		t.Helper()
		if err := e.SetPeers(peers); err != nil {
			t.Fatal(err)
		}
	}
	set(one, two)
	e.member(one.ID).drops.add(dropReplay, 7)
	e.member(two.ID).drops.add(dropReplay, 5)
	two.NoisePublic = [32]byte{4} // sessions begin anew
	for i, change := range []func(){func() { set(one, two) }, func() { set(two) }, func() { set() }, func() { set(one) }} {
		if change(); total() != 12 {
			t.Errorf("change %d: %d were dropped, want 12", i+1, total())
		}
	}
	if _, counted := e.Stats().Drops[dropReplay.String()]; counted {
		t.Error("they are counted as nobody's, too")
	}
}
