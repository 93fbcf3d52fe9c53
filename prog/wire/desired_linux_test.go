package wire

import (
	"strings"
	"testing"

	"weft/mesh/peer"
)

// A wire that follows is told what is wanted. Where the newest word of that may not have reached the present one, the word
// before it must not be handed on: it may name a peer that was removed since.
func TestAWireIsNotReplacedWithWhatIsWantedNoMore(t *testing.T) {
	c := mustEnsure(t, testOptions(t))
	id := Identity{ID: peer.ID{1}, NoisePrivate: [32]byte{1}, Counter: 1}
	one := Peer{ID: peer.ID{2}, NoisePublic: [32]byte{2}}
	ctx := t.Context()
	for _, err := range []error{
		c.SetIdentity(ctx, id), c.SetPeers(ctx, []Peer{one}), c.SetTunnels(ctx, nil), c.SetLocal(ctx, nil),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := c.SetPeers(ctx, []Peer{one, one}); err == nil {
		t.Fatal("a peer may be there twice")
	}
	id.Counter = 1 << 40
	next, err := c.Replace(ctx, id)
	if err == nil {
		t.Cleanup(func() { next.Close() })
		t.Fatal("the next wire was told what the last word replaced")
	}
	if !strings.Contains(err.Error(), "has not been told all") {
		t.Fatal(err)
	}
	if err := c.SetPeers(ctx, []Peer{one}); err != nil {
		t.Fatal(err)
	}
	if next, err = c.Replace(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := next.Stop(ctx); err != nil {
		t.Error(err)
	}
}
