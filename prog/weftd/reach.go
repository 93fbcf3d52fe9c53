package weftd

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft/mesh/peer"
	"weft/router/sleeve"
)

// reach is how others reach this node, as far as they have shown it: what stands between, where they hear it, whether they
// can dial it, and which relays it keeps sessions with. It goes into the own record.
type reach struct {
	mu        sync.Mutex // guards all below
	nat       peer.NAT
	hardSince time.Time        // that the sights have looked like a hard NAT; zero: they do not
	reflected []netip.AddrPort // outside addresses that several agree on
	unsure    []netip.AddrPort // and such that one alone has told: good enough to be tried
	tested    peer.NAT         // by the echo of a second port; unknown: not tested, or nobody answered
	homes     []peer.Home
	dialled   time.Time // when somebody last came in unasked; zero: nobody did
}

const (
	maxHomes     = 3
	hardFor      = 5 * time.Second // that sights disagree: a NAT that has just rebound looks hard for a moment
	dialledLife  = 24 * time.Hour  // without anybody coming in
	homeBetter   = 0.8             // of the old one's round trip, for a relay to take its place
	homeMargin   = 2 * time.Millisecond
	homeRTTNoise = 20 * time.Millisecond // that a round trip may change before others are told, and a half: all hear of it
)

// sight is one peer's word about where it hears this node over UDP.
type sight struct {
	from netip.Addr // where the peer is
	at   netip.AddrPort
}

// sights are the words of peers that hear this node without anybody between.
func sights(stats []sleeve.PeerStats) (all []sight) {
	for _, s := range stats {
		if s.Up && len(s.Via) == 0 && !s.TCP && s.Observed.IsValid() && s.Endpoint.IsValid() {
			at := netip.AddrPortFrom(s.Observed.Addr().Unmap(), s.Observed.Port())
			all = append(all, sight{s.Endpoint.Addr().Unmap(), at})
		}
	}
	return all
}

// judge says what NAT the sights show, and the outside addresses: those that peers of two networks agree on, and those that
// one alone has told. Peers that see an address of the machine itself look through no NAT; they say nothing about one that
// others look through. IPv4 counts where there is any, since NATs are an affair of IPv4.
func judge(all []sight, own []netip.Addr, tested peer.NAT) (nat peer.NAT, agreed, unsure []netip.AddrPort) {
	all = slices.DeleteFunc(slices.Clone(all), func(s sight) bool {
		return s.at.Addr().Is6() && slices.ContainsFunc(all, func(o sight) bool { return o.at.Addr().Is4() })
	})
	tellers := map[netip.AddrPort]map[netip.Prefix]bool{}
	for _, s := range all {
		if slices.Contains(own, s.at.Addr()) {
			continue
		}
		if tellers[s.at] == nil {
			tellers[s.at] = map[netip.Prefix]bool{}
		}
		tellers[s.at][neighbourhood(s.from)] = true
	}
	if len(tellers) == 0 {
		if len(all) == 0 {
			return peer.NATUnknown, nil, nil
		}
		return peer.NATNone, nil, nil
	}
	lone := 0
	for at, by := range tellers {
		if len(by) > 1 {
			agreed = append(agreed, at)
		} else {
			unsure = append(unsure, at)
			lone++
		}
	}
	for _, list := range [][]netip.AddrPort{agreed, unsure} {
		slices.SortFunc(list, netip.AddrPort.Compare)
	}
	switch {
	case len(agreed) > 0: // who tells another one may be mistaken, or lie
		return peer.NATEasy, agreed, unsure
	case lone > 1:
		return peer.NATHard, nil, unsure
	case tested == peer.NATEasy:
		return peer.NATEasy, unsure, nil
	case tested == peer.NATHard:
		return peer.NATHard, nil, unsure
	}
	return peer.NATUnknown, nil, unsure
}

// neighbourhood is what one operator is likely to have: peers in it count as one witness.
func neighbourhood(a netip.Addr) netip.Prefix {
	bits := 24
	if a.Is6() {
		bits = 48
	}
	p, _ := a.Prefix(bits)
	return p
}

// observe takes what the wire knows now, and reports whether anything has changed that others are to know.
func (r *reach) observe(now time.Time, self peer.ID, stats []sleeve.PeerStats, own []netip.Addr, relays map[peer.ID]peer.Info) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := sights(stats)
	changed := false
	if len(seen) > 0 { // without a word from anybody the last ones hold
		nat, agreed, unsure := judge(seen, own, r.tested)
		if nat != peer.NATHard {
			r.hardSince = time.Time{}
		} else if r.hardSince.IsZero() {
			r.hardSince = now
		}
		if nat != peer.NATHard || r.nat == peer.NATUnknown && r.tested == peer.NATHard || now.Sub(r.hardSince) >= hardFor {
			changed = r.nat != nat || !slices.Equal(r.reflected, agreed)
			r.nat, r.reflected = nat, agreed
		}
		r.unsure = unsure
	}
	if homes, moved := chooseHomes(self, r.homes, stats, relays); moved {
		r.homes = homes
		changed = true
	}
	return changed
}

// chooseHomes keeps the relays in use while they are reached, and takes a better one only for good. Among those as near as each
// other every node prefers others, so that not all come to one.
func chooseHomes(self peer.ID, old []peer.Home, stats []sleeve.PeerStats, relays map[peer.ID]peer.Info) (homes []peer.Home, changed bool) {
	type option struct {
		peer.Home
		rank  int
		place int // counted from the last of the old ones; 0: it is none of them
		cost  time.Duration
	}
	var options []option
	for _, s := range stats {
		info, ok := relays[s.ID]
		if !ok || !s.Up || len(s.Via) > 0 {
			continue
		}
		o := option{Home: peer.Home{ID: s.ID, RTT: s.RTT}, cost: s.RTT}
		if info.NAT != peer.NATNone {
			o.rank++
		}
		if s.TCP {
			o.rank += 2
		}
		for i, h := range old {
			if h.ID != s.ID {
				continue
			}
			o.place, o.cost = len(old)-i, max(0, time.Duration(float64(s.RTT)*homeBetter)-homeMargin)
			if diff := (s.RTT - h.RTT).Abs(); diff < max(homeRTTNoise, h.RTT/2) {
				o.RTT = h.RTT
			}
		}
		options = append(options, o)
	}
	slices.SortFunc(options, func(a, b option) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.cost/relayNear, b.cost/relayNear), -cmp.Compare(a.place, b.place),
			cmp.Compare(spread(a.ID, self), spread(b.ID, self)))
	})
	if len(options) == 0 { // all sessions may be down because this machine is
		return old, false
	}
	chosen := options[:min(len(options), maxHomes)]
	if len(chosen) == len(old) && !slices.ContainsFunc(chosen, func(o option) bool { return o.place == 0 }) {
		slices.SortFunc(chosen, func(a, b option) int { return cmp.Compare(b.place, a.place) }) // another order is no news
	}
	for _, o := range chosen {
		homes = append(homes, peer.Home{ID: o.ID, RTT: o.RTT.Truncate(time.Millisecond)})
	}
	return homes, !slices.Equal(homes, old)
}

// cameIn notes that somebody has opened a connection to this node unasked; it reports whether that is news.
func (r *reach) cameIn(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	news := now.Sub(r.dialled) > dialledLife
	r.dialled = now
	return news
}

// shown is what others are told.
type shown struct {
	nat       peer.NAT
	reflected []netip.AddrPort
	homes     []peer.Home
	dialable  bool
}

func (r *reach) show(now time.Time) shown {
	r.mu.Lock()
	defer r.mu.Unlock()
	return shown{r.nat, slices.Clone(r.reflected), slices.Clone(r.homes), now.Sub(r.dialled) <= dialledLife}
}

// outside lists where this node may be heard by those who are not told yet.
func (r *reach) outside() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Concat(r.reflected, r.unsure)
}

// test takes the answer of an echo; it reports whether that is news.
func (r *reach) test(nat peer.NAT) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	news := r.tested != nat
	r.tested = nat
	return news
}

// wondering reports whether an echo would tell more: one peer alone hears this node at an address that is not its own.
func (r *reach) wondering() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.unsure) == 1 && len(r.reflected) == 0 || r.tested != peer.NATUnknown
}

// forget is for a machine whose own addresses have changed: another network, another NAT.
func (r *reach) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tested = peer.NATUnknown
}

// remember takes over what a former run has found out.
func (r *reach) remember(now time.Time, s shown) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nat, r.reflected, r.homes = s.nat, slices.Clone(s.reflected), slices.Clone(s.homes)
	if s.dialable {
		r.dialled = now
	}
}
