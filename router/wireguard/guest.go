package wireguard

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
)

// Guest is a peer that is no member: a client from outside.
type Guest struct {
	Public    Key
	Preshared Key
	Allowed   []netip.Prefix // its own addresses
}

// guestMTU is what WireGuard's own tools take where they know no better.
const guestMTU = 1420

// Welcome makes a device's peers exactly the guests, and says what it holds then.
func Welcome(ctx context.Context, d Device, private Key, port uint16, guests []Guest) (State, error) {
	if err := d.Ensure(ctx, guestMTU); err != nil {
		return State{}, err
	}
	have, err := d.State(ctx)
	if err != nil {
		return State{}, err
	}
	want := wanted{private: private, port: port}
	for _, g := range guests {
		want.peers = append(want.peers, wantedPeer{public: g.Public, preshared: &g.Preshared, allowed: g.Allowed})
	}
	slices.SortFunc(want.peers, func(a, b wantedPeer) int { return compareKeys(a.public, b.public) })
	stranger := Key{1} // a point of small order: nobody has its private key
	steps := diff(have, want, stranger)
	if err := carryOut(ctx, d, steps, dismiss(have, want)); err != nil {
		return State{}, fmt.Errorf("welcome clients: %w", err)
	}
	if len(steps) == 0 {
		return have, nil
	}
	return d.State(ctx)
}
