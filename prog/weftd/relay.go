package weftd

import (
	"cmp"
	"context"
	"errors"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"weft/mesh"
	"weft/mesh/circuit"
	"weft/mesh/path"
	"weft/mesh/peer"
)

// Datagrams between daemons, beside those of the mesh; append-only.
//
//	ring    version(1)  nonce(16)      answer this call: see circuit
//	punch   see punch.go
//	echo    see echo.go
const (
	datagramRing  = mesh.FirstDatagram + 0
	datagramPunch = mesh.FirstDatagram + 1
	datagramEcho  = mesh.FirstDatagram + 2

	datagramVersion = 1
)

// relaysFor lists whom packets and streams to a member may go through, best first: relays that both keep, then those that
// the member keeps, then ours. Where neither has told any, whoever is known to carry for others.
func (n *node) relaysFor(to peer.Info) []peer.ID {
	own := n.reach.show(time.Now()).homes
	members := n.relays()
	mine := map[peer.ID]time.Duration{}
	for _, h := range own {
		mine[h.ID] = h.RTT
	}
	type option struct {
		id   peer.ID
		rank int
		cost time.Duration
	}
	var options []option
	add := func(o option) {
		info, ok := members[o.id]
		if !ok || o.id == to.ID || slices.ContainsFunc(options, func(x option) bool { return x.id == o.id }) {
			return
		}
		if info.State != peer.Alive {
			o.rank += relayAway
		}
		options = append(options, o)
	}
	for _, h := range to.Homes {
		if rtt, common := mine[h.ID]; common {
			add(option{h.ID, relayCommon, rtt + h.RTT})
		}
	}
	for _, h := range to.Homes {
		add(option{h.ID, relayTheirs, h.RTT})
	}
	for _, h := range own {
		add(option{h.ID, relayOurs, h.RTT})
	}
	if len(options) < path.MaxRelays {
		for id, info := range members {
			if info.NAT != peer.NATEasy && info.NAT != peer.NATHard {
				add(option{id, relayAny, 0})
			}
		}
	}
	slices.SortFunc(options, func(a, b option) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.cost/relayNear, b.cost/relayNear),
			cmp.Compare(spread(a.id, n.key.ID(), to.ID), spread(b.id, n.key.ID(), to.ID)))
	})
	var ids []peer.ID
	for _, o := range options[:min(len(options), path.MaxRelays)] {
		ids = append(ids, o.id)
	}
	return ids
}

// Ranks of relays for a pair, best first. One that gossip does not call alive may work all the same.
const (
	relayCommon = iota
	relayTheirs
	relayOurs
	relayAny
	relayAway
)

// relayNear is by how much round trips by two relays may differ for either to do: then the load is spread over them. How
// loaded one really is shows in the probes that go through it, by which the wire chooses among those listed here.
const relayNear = 2 * time.Millisecond

// spread orders relays as good as each other differently for each pair, and alike at both of its ends.
func spread(relay peer.ID, pair ...peer.ID) uint64 {
	slices.SortFunc(pair, peer.ID.Compare)
	h := fnv.New64a()
	for _, id := range append(pair, relay) {
		_, _ = h.Write(id[:]) // never fails
	}
	return h.Sum64()
}

// relays are the members that carry for others and can be dialled, without this node.
func (n *node) relays() map[peer.ID]peer.Info {
	found := map[peer.ID]peer.Info{}
	for _, info := range n.company() {
		if info.Relays && info.Dialable {
			found[info.ID] = info
		}
	}
	return found
}

// streamRelays are whom a stream to a member may go through.
func (n *node) streamRelays(id peer.ID) (via []peer.ID, behind bool) {
	info, ok := n.mesh.Peer(id)
	if !ok {
		return nil, false
	}
	return n.relaysFor(info), hidden(info)
}

// hidden reports whether a member cannot be dialled, by its own word.
func hidden(info peer.Info) bool {
	return (info.NAT == peer.NATEasy || info.NAT == peer.NATHard) && !info.Dialable
}

// hiddenPair says which of the two a NAT hides from the other. What a pair sees of each other counts more than what
// others see: two machines behind one NAT reach each other.
func (n *node) hiddenPair(info peer.Info) (them, us bool) {
	if at := n.heardAt(info.ID); at.IsValid() {
		them = !slices.ContainsFunc(info.Endpoints, func(e netip.AddrPort) bool { return e.Addr().Unmap() == at.Addr().Unmap() })
	} else {
		them = hidden(info)
	}
	n.glue.linksMu.Lock()
	us, seen := n.glue.masked[info.ID]
	n.glue.linksMu.Unlock()
	if !seen {
		own, _ := n.mesh.Peer(n.key.ID())
		us = hidden(own)
	}
	return them, us
}

// noDirect is why the kernels of the two find no way to each other's ports.
func (n *node) noDirect(info peer.Info) string {
	if them, us := n.hiddenPair(info); them && us {
		return "both ends are behind a NAT, and holes are punched for the weft port only"
	}
	return ""
}

// easierToDial compares a member with this node: positive when only it can be dialled, negative when only this node can.
func (n *node) easierToDial(m peer.Info) int {
	own, _ := n.mesh.Peer(n.key.ID())
	return easierThan(own, m)
}

// easierThan is positive when only m can be dialled, negative when only own can. Where nothing is known yet, private
// addresses on one side alone tell as much.
func easierThan(own, m peer.Info) int {
	if len(own.Endpoints) == 0 || len(m.Endpoints) == 0 {
		return 0 // just started: the two must not come to different ends, or both begin
	}
	dials := func(i peer.Info) int {
		if i.Dialable && i.NAT != peer.NATEasy && i.NAT != peer.NATHard || slices.ContainsFunc(i.Endpoints, func(ap netip.AddrPort) bool {
			return ap.Addr().Is4() && !ap.Addr().IsPrivate() && !cgnat.Contains(ap.Addr())
		}) {
			return 1
		}
		return 0
	}
	return dials(m) - dials(own)
}

// cgnat is what carriers' NATs have inside (RFC 6598).
var cgnat = netip.MustParsePrefix("100.64.0.0/10")

// errNotDialled is why nobody is asked to dial back.
var errNotDialled = errors.New("nobody could dial back: this node is not known to be reached unasked")

// ringUp asks a member to answer a call that is held here.
func (n *node) ringUp(to peer.ID, nonce circuit.Nonce) error {
	if s := n.reach.show(time.Now()); !s.dialable && len(n.cfg.Advertise) == 0 {
		return errNotDialled
	}
	return n.mesh.Datagram(to, datagramRing, append([]byte{datagramVersion}, nonce[:]...))
}

// hearRing answers such a call.
func (n *node) hearRing(from peer.ID, b []byte) {
	if len(b) < 1+circuit.NonceSize || b[0] != datagramVersion {
		return
	}
	if err := n.circuits.Answer(from, circuit.Nonce(b[1:])); err != nil {
		n.log.Debug("call not answered", "peer", from, "err", err)
	}
}

// dataStreams are where a member takes datagrams in TCP streams, and its second door for streams of any kind.
func dataStreams(info peer.Info, told []netip.AddrPort) []netip.AddrPort {
	all := slices.Clone(told)
	if info.TCPPort == 0 {
		return all
	}
	for _, ap := range told {
		if second := netip.AddrPortFrom(ap.Addr(), info.TCPPort); !slices.Contains(all, second) {
			all = append(all, second)
		}
	}
	return all
}

// tellRelay tells the wire whether to carry packets of others.
func (n *node) tellRelay(ctx context.Context) error {
	if n.glue.relayTold {
		return nil
	}
	err := n.link.SetRelay(ctx, !n.cfg.NoRelay)
	n.glue.relayTold = err == nil
	return err
}

// recall takes over from the saved record what only time would tell again: a daemon that starts anew is no news to those
// who use it as a relay.
func (n *node) recall(saved mesh.Record) {
	n.reach.remember(time.Now(), shown{
		nat: saved.NAT, reflected: saved.Reflected, homes: saved.Homes, dialable: saved.Abilities&mesh.AbilityDialable != 0,
	})
}

// confess puts into the record how this node is reached.
func (n *node) confess(r *mesh.Record) {
	s := n.reach.show(time.Now())
	r.NAT, r.Reflected, r.Homes = s.nat, s.reflected, s.homes
	r.TCPPort = n.cfg.RelayListen.Port()
	r.Abilities &^= mesh.AbilityRelay | mesh.AbilityDialable
	if !n.cfg.NoRelay {
		r.Abilities |= mesh.AbilityRelay
	}
	if s.dialable || len(n.cfg.Advertise) > 0 {
		r.Abilities |= mesh.AbilityDialable
	}
	if r.Abilities&mesh.AbilityDialable != 0 && s.nat == peer.NATNone {
		r.Homes = nil // nobody needs them, and each change would be news to all
	}
}
