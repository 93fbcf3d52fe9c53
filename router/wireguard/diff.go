package wireguard

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// wanted is what a device should hold.
type wanted struct {
	private Key
	port    uint16
	peers   []wantedPeer // sorted by public key
}

type wantedPeer struct {
	public    Key
	preshared *Key           // nil: as it is, and a peer that has none yet is not added
	endpoint  netip.AddrPort // zero: as it is
	move      bool           // the endpoint is new; otherwise it is set only where none is known, for peers roam
	keepalive time.Duration
	allowed   []netip.Prefix
}

// diff lists the configurations that make have what is wanted, each to be carried out before the next. stranger is a
// public key that nobody has.
func diff(have State, want wanted, stranger Key) (steps []Config) {
	var first, last Config
	if have.Private != clamp(want.private) {
		first.Private = &want.private
	}
	if have.Port != want.port {
		first.Port = &want.port
	}
	owner := owners(have, want)
	type gain struct {
		public Key
		prefix netip.Prefix
	}
	var gains []gain
	keep := make(map[Key]bool, len(want.peers))
	for _, w := range want.peers {
		h, known := have.Peers[w.public]
		if !known && w.preshared == nil {
			continue // never without a preshared key
		}
		keep[w.public] = true
		c := Change{Public: w.public}
		if w.preshared != nil && (!known || h.Preshared != *w.preshared) {
			c.Preshared = w.preshared
		}
		if w.endpoint.IsValid() && w.endpoint != h.Endpoint && (w.move || !h.Endpoint.IsValid()) {
			c.Endpoint = w.endpoint
		}
		if h.Keepalive != w.keepalive {
			c.Keepalive = &w.keepalive
		}
		if !known || c.Preshared != nil || c.Endpoint.IsValid() || c.Keepalive != nil {
			first.Peers = append(first.Peers, c)
		}
		for _, p := range w.allowed {
			if owner[p] == w.public && !slices.Contains(h.Allowed, p) {
				gains = append(gains, gain{w.public, p})
			}
		}
	}
	// The smallest first: one that lies in another which changes hands too must not be with that one's owner in between.
	slices.SortStableFunc(gains, func(a, b gain) int { return b.prefix.Bits() - a.prefix.Bits() })
	for _, g := range gains {
		n := len(first.Peers)
		if n == 0 || first.Peers[n-1].Public != g.public {
			first.Peers, n = append(first.Peers, Change{Public: g.public}), n+1
		}
		first.Peers[n-1].Allowed = append(first.Peers[n-1].Allowed, g.prefix)
	}
	var left []netip.Prefix
	former := make(map[netip.Prefix]Key) // what goes, and who has it until then
	for public, h := range have.Peers {
		for _, p := range h.Allowed {
			if _, somebodys := owner[p]; !somebodys {
				former[p] = public
			}
		}
	}
	shadows := make(map[Key][]netip.Prefix)
	var gone []Change
	for _, public := range slices.SortedFunc(maps.Keys(have.Peers), compareKeys) {
		if !keep[public] {
			gone = append(gone, Change{Public: public, Remove: true})
		}
		for _, p := range have.Peers[public].Allowed {
			if former[p] != public {
				continue
			}
			switch of, around, covered := cover(owner, p); {
			case keep[public] && !covered:
				left = append(left, p)
			case keep[public] && of != public, !keep[public] && covered && lies(former, p, around):
				shadows[of] = append(shadows[of], p)
			}
		}
	}
	for _, public := range slices.SortedFunc(maps.Keys(shadows), compareKeys) {
		last.Peers = append(last.Peers, Change{Public: public, Allowed: shadows[public]})
	}
	last.Peers = append(last.Peers, gone...)
	if len(left) > 0 {
		last.Peers = append(last.Peers, Change{Public: stranger, Allowed: left}, Change{Public: stranger, Remove: true})
	}
	for _, c := range []Config{first, last} {
		if !c.empty() {
			steps = append(steps, c)
		}
	}
	return steps
}

// dismiss removes the peers that are not wanted, and changes nothing else.
func dismiss(have State, want wanted) (c Config) {
	for _, public := range slices.SortedFunc(maps.Keys(have.Peers), compareKeys) {
		if !slices.ContainsFunc(want.peers, func(w wantedPeer) bool { return w.public == public }) {
			c.Peers = append(c.Peers, Change{Public: public, Remove: true})
		}
	}
	return c
}

// clamp is a private key as devices tell it: the bits that X25519 takes as given are set.
func clamp(k Key) Key {
	if !k.IsZero() {
		k[0] &= 248
		k[KeySize-1] = k[KeySize-1]&127 | 64
	}
	return k
}

// cover is the owner of the smallest wanted prefix around p. A remainder inside it is left, at the same owner: it changes
// nothing, and taking it away would make a hole.
func cover(owner map[netip.Prefix]Key, p netip.Prefix) (of Key, around netip.Prefix, covered bool) {
	for bits := p.Bits() - 1; bits >= 0; bits-- {
		around = netip.PrefixFrom(p.Addr(), bits).Masked()
		if of, covered = owner[around]; covered {
			return of, around, true
		}
	}
	return Key{}, netip.Prefix{}, false
}

// lies reports whether p lies in something that goes, inside around: were p taken away first, it would show.
func lies(former map[netip.Prefix]Key, p, around netip.Prefix) bool {
	for bits := p.Bits() - 1; bits > around.Bits(); bits-- {
		if _, ok := former[netip.PrefixFrom(p.Addr(), bits).Masked()]; ok {
			return true
		}
	}
	return false
}

// owners says who is to have each prefix. Of several that want one, who has it keeps it: one address never leads to two
// peers, and no quarrel moves it to and fro.
func owners(have State, want wanted) map[netip.Prefix]Key {
	owner := make(map[netip.Prefix]Key)
	for _, w := range want.peers {
		h, known := have.Peers[w.public]
		if !known && w.preshared == nil {
			continue
		}
		for _, p := range w.allowed {
			if _, taken := owner[p]; !taken || slices.Contains(h.Allowed, p) {
				owner[p] = w.public
			}
		}
	}
	return owner
}

func compareKeys(a, b Key) int { return slices.Compare(a[:], b[:]) }
