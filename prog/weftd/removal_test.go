package weftd

import (
	"testing"
	"time"

	"weft/crypto/identity"
	"weft/ipam"
	"weft/mesh/peer"
)

// The ring asks of a removal up to which start it is meant: a later one has come up again, and must stop first.
func TestARemovalReachesTheRingWithItsStart(t *testing.T) {
	_, key := testMembership(t)
	victim := peer.ID{9}
	for _, tt := range []struct {
		why  identity.Reason
		want ipam.Removal
	}{
		{identity.ByHand, ipam.Removal{Node: victim, Incarnation: 7}},
		{identity.Silence, ipam.Removal{Node: victim, Incarnation: 7, Silent: true}},
		{identity.Stolen, ipam.Removal{Node: victim, Incarnation: 7, Stolen: true}},
	} {
		r, err := identity.Issuer{Key: key}.RemoveStart(victim, 7, tt.why, time.Unix(1_800_000_000, 0))
		if err != nil {
			t.Fatal(err)
		}
		if got := ringRemoval(r); got != tt.want {
			t.Errorf("%s: %+v", tt.why, got)
		}
	}
}
