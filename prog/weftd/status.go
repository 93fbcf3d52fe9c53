package weftd

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/ipam"
	"weft/ipam/space"
	"weft/mesh/peer"
	"weft/prog/control"
	"weft/router"
)

// Status is the whole picture. It is made from snapshots that each part keeps, so it answers while a disk, a peer or the
// kernel hangs.
func (d *daemon) Status(context.Context) (control.Status, error) {
	d.mu.Lock()
	n, joining, ending := d.node, d.joining, d.ending
	d.mu.Unlock()
	s := control.Status{Version: control.Version}
	s.Node = control.Node{
		Name: d.cfg.Name, State: control.NodeWaiting, Reason: "no cluster yet: weft init makes one, weft join TOKEN enters one",
		NAT: "unknown", UptimeS: int64(time.Since(d.started).Seconds()), Build: d.cfg.Build,
	}
	if joining != "" {
		s.Node.State, s.Node.Reason = control.NodeJoining, joining
	}
	if n != nil {
		n.status(&s)
	}
	if ending != "" {
		s.Node.State, s.Node.Reason = control.NodeStopping, ending
	}
	return s, nil
}

// status fills in what a member knows.
func (n *node) status(s *control.Status) {
	roster, ring, routes := n.mesh.Roster(), n.ring.Status(), n.router.Status()
	own, _ := n.mesh.Peer(n.key.ID())
	infos := n.mesh.Peers()

	s.Node.ID, s.Node.Name = n.key.ID().String(), n.name
	s.Node.State, s.Node.Reason = control.NodeReady, ""
	for _, ep := range own.Endpoints {
		if !slices.Contains(s.Node.Underlay, ep.Addr()) {
			s.Node.Underlay = append(s.Node.Underlay, ep.Addr())
		}
	}
	host, settled := n.ring.HostAddress()
	if settled {
		s.Node.Overlay = addresses(host)
	}
	s.Node.NAT, s.Node.Relay = n.reach.show(time.Now()).nat.String(), own.Relays && own.Dialable
	_, s.Node.Voter = n.member.certificate.Voter()
	_, s.Node.Issuer = roster.Delegation(n.key.ID())
	end, gone := n.removed()
	why, stopped := n.ring.Stopped()
	switch {
	case gone:
		s.Node.State, s.Node.Reason, s.Node.Voter = control.NodeRemoved, n.whyRemoved(end), false
	case stopped:
		s.Node.State, s.Node.Reason = control.NodeWaiting, why
	case !routes.Ready:
		s.Node.State, s.Node.Reason = control.NodeJoining, cmp.Or(routes.Reason, "routes and guard are being set up")
	case ring.State == ipam.StateWaiting && !(ring.Full && settled): // a member that has given away all its addresses is one
		s.Node.State, s.Node.Reason = control.NodeJoining, ring.Reason
	case n.link.attached() == 0:
		s.Node.State, s.Node.Reason = control.NodeJoining, "the data plane is starting"
	case !settled:
		s.Node.State, s.Node.Reason = control.NodeJoining, "this machine has no pod address of its own yet"
	case routes.Reason != "":
		s.Node.Reason = routes.Reason
	case ring.Full:
		s.Node.Reason = ring.Reason
	case ring.State == ipam.StateUnconfirmed:
		s.Node.Reason = "unconfirmed: " + ring.Reason
	}

	s.Cluster = control.Cluster{
		ID: clusterName(n.member.cluster), Pools: n.pools, Encryption: control.EncryptionRequired,
		Members: 1, Alive: 1,
	}
	if len(n.cfg.Trusted) > 0 {
		s.Cluster.Encryption = control.EncryptionTrustedSubnets
	}
	for _, t := range routes.Transports {
		s.Transports = append(s.Transports, control.Transport{Name: t.Name, Available: t.Available, Reason: t.Reason})
	}
	byPeer := map[peer.ID]router.PeerStatus{}
	for _, p := range routes.Peers {
		byPeer[p.Peer] = p
	}
	blocks := n.ring.Blocks()
	for _, info := range infos {
		if info.State != peer.Removed {
			s.Cluster.Members++
		}
		if info.State == peer.Alive {
			s.Cluster.Alive++
		}
		if info.State == peer.Removed && n.forgotten(info.ID) && len(blocks[info.ID]) == 0 {
			continue
		}
		line := peerStatus(info, byPeer[info.ID], blocks[info.ID], time.Now())
		n.showWay(&line, info, byPeer[info.ID])
		if r, ok := roster.Removal(info.ID); ok {
			line.Reason = "removed: " + r.Reason.String()
		}
		s.Peers = append(s.Peers, line)
	}
	s.IPAM = control.IPAM{
		State: ring.State, Reason: ring.Reason, Blocks: ring.Blocks, Used: uint64(ring.Used),
		Free: uint64(ring.Free), Unreachable: uint64(ring.Unreachable),
	}
	if gone || stopped {
		return // the rest is other people's business now
	}
	s.Warnings = append(n.warnings(s.Cluster.Members, routes), n.forcedNotes(time.Now())...)
	for _, r := range ring.Reclaims {
		reclaim := n.reclaimOf(r)
		s.IPAM.Reclaims = append(s.IPAM.Reclaims, reclaim)
		s.Warnings = append(s.Warnings, reclaim.Reason)
	}
}

// reclaimOf is the way of a removed member's space to others, in words.
func (n *node) reclaimOf(r ipam.Reclaim) control.Reclaim {
	c := control.Reclaim{ID: r.Node.String(), Name: n.peerName(r.Node), Forced: r.Forced}
	for _, id := range r.WaitsFor {
		c.WaitsFor = append(c.WaitsFor, n.peerName(id))
	}
	state := "reclaim is under way"
	switch {
	case len(c.WaitsFor) > 0:
		state = "reclaim waits for " + strings.Join(c.WaitsFor, ", ")
	case r.Problem != "":
		state = "reclaim waits: " + r.Problem
	case r.Leader != n.key.ID() && !r.Leader.IsZero():
		state = "reclaim is led by " + n.peerName(r.Leader)
	}
	if r.Forced {
		state += ", by force"
	}
	amount := strconv.Itoa(r.Addresses)
	if r.Addresses == space.Many {
		amount = "countless"
	}
	c.Reason = fmt.Sprintf("%s was removed, and its %s addresses are nobody's yet: %s", c.Name, amount, state)
	return c
}

// shownRemoved is how long a removed member is listed after its space is gone; only eyes depend on it.
const shownRemoved = 24 * time.Hour

// forgotten reports whether a member was removed long ago, by the clocks of who removed it and of this node.
func (n *node) forgotten(id peer.ID) bool {
	r, ok := n.mesh.Roster().Removal(id)
	return ok && time.Since(r.Created) > shownRemoved
}

// warnings are about what works, or nearly, but should not stay so.
func (n *node) warnings(members int, routes router.Status) (all []string) {
	if err := n.link.trouble(); err != nil {
		all = append(all, "The data plane does not run: "+explain(err).Error()+".")
	}
	if rate := n.glue.flood.Load(); rate > 0 {
		all = append(all, floodNote(rate))
	}
	switch live := n.liveIssuers(); {
	case members < 2 || live > 1:
	case live == 1:
		all = append(all, "Only one live member may admit others; when it is lost nobody can join any more. Try: weft issuer add NAME")
	default:
		all = append(all, "No live member may admit others, so nobody can join until one comes back")
	}
	return append(all, routes.Notes...)
}

// floodNote is about so many datagrams a second.
func floodNote(rate uint64) string {
	round := uint64(1000)
	for rate >= 100*round {
		round *= 10
	}
	return fmt.Sprintf("Strangers flood the weft port: some %d datagrams a second are dropped, and what members send is let through",
		(rate+round/2)/round*round)
}

// peerStatus is one line of the status.
func peerStatus(info peer.Info, r router.PeerStatus, blocks []netip.Prefix, now time.Time) control.Peer {
	p := control.Peer{
		ID: info.ID.String(), Name: info.Name, State: info.State.String(), Blocks: blocks,
		Transport: r.Transport, Encrypted: r.Encrypted, Path: control.PathNone, Endpoint: r.Link.Endpoint,
		Reason: r.Reason, MTU: r.MTU, RTTms: float64(r.Link.RTT.Microseconds()) / 1000, Loss: r.Link.Loss,
		LastSeenS: -1, KeyAgeS: -1, RxBytes: r.Link.RxBytes, TxBytes: r.Link.TxBytes,
	}
	if r.Link.Up {
		p.Path = control.PathDirect
	}
	p.Asleep = r.Link.Asleep
	p.Reason = peerReason(info, r, len(blocks) > 0)
	seen := info.LastSeen
	if r.Link.LastSeen.After(seen) {
		seen = r.Link.LastSeen
	}
	if !seen.IsZero() {
		p.LastSeenS = max(0, now.Sub(seen).Seconds())
	}
	if r.Link.KeyAge >= 0 && !r.Link.LastSeen.IsZero() {
		p.KeyAgeS = int64(r.Link.KeyAge.Seconds())
	}
	return p
}

// showWay adds who carries the packets to a peer, and why they do not go directly.
func (n *node) showWay(p *control.Peer, info peer.Info, r router.PeerStatus) {
	if no := n.noDirect(info); no != "" && slices.ContainsFunc(r.Rejected, func(x router.Rejection) bool { return x.Reason == no }) {
		p.Reason += "; no WireGuard of the kernels: " + no
	}
	l := r.Link
	if !l.Up || len(l.Via) == 0 && !l.TCP {
		return
	}
	p.Path = control.PathTCP
	if len(l.Via) > 0 {
		p.Path = control.PathRelay
	}
	for _, relay := range l.Via {
		p.Via = append(p.Via, n.peerName(relay))
	}
	if why := n.whyDetour(info.ID); why != "" {
		p.Reason = strings.TrimPrefix(p.Reason+"; "+why, "; ")
	}
}

// peerReason says why the peer is reached in this way, or why it is not.
func peerReason(info peer.Info, r router.PeerStatus, owns bool) string {
	var why []string
	switch {
	case info.State == peer.Removed:
		return "removed from the cluster"
	case info.State == peer.Dead && r.Link.Up:
		why = append(why, "gossip calls it dead, and its packets arrive")
	case info.State == peer.Dead && !owns:
		return "it has left, or is away and owns no addresses"
	case info.State == peer.Dead && info.LastSeen.IsZero():
		why = append(why, "not heard since the start")
	}
	if r.Reason != "" {
		why = append(why, r.Reason)
	}
	if !r.Link.Up && r.Link.Reason != "" {
		why = append(why, r.Link.Reason)
	}
	return strings.Join(why, "; ")
}

// liveIssuers counts the members that could admit a node now.
func (n *node) liveIssuers() int {
	live := 0
	for _, id := range n.mesh.Roster().Issuers() {
		if info, ok := n.mesh.Peer(id); ok && info.State == peer.Alive {
			live++
		}
	}
	return live
}

// find is the member that a person means: a name, an ID, or the beginning of an ID.
func (n *node) find(word string) (peer.Info, error) {
	self, _ := n.mesh.Peer(n.key.ID())
	return pick(append(n.mesh.Peers(), self), word)
}

// pick is find among these. A name wins over the beginning of an ID, for names are what people choose; but not over the whole
// of one, or a member could take what is meant for another upon itself.
func pick(members []peer.Info, word string) (peer.Info, error) {
	if id, err := peer.Parse(word); err == nil {
		if i := slices.IndexFunc(members, func(m peer.Info) bool { return m.ID == id }); i >= 0 {
			return members[i], nil
		}
	}
	var byName, byID []peer.Info
	for _, info := range members {
		if info.Name == word {
			byName = append(byName, info)
		}
		if len(word) >= minIDPart && strings.HasPrefix(info.ID.String(), word) {
			byID = append(byID, info)
		}
	}
	found := byName
	if len(found) == 0 {
		found = byID
	}
	// Who came back bears the name of its former life, which nobody means any more.
	if lasting := slices.DeleteFunc(slices.Clone(found), func(f peer.Info) bool { return f.State == peer.Removed }); len(lasting) > 0 {
		found = lasting
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return peer.Info{}, &control.Error{
			Code: control.NotFound, Message: fmt.Sprintf("no member is called %q", word),
			Hint: "Try: weft peer list",
		}
	}
	var ids []string
	for _, f := range found {
		ids = append(ids, f.ID.String())
	}
	slices.Sort(ids)
	return peer.Info{}, &control.Error{
		Code: control.Usage, Message: fmt.Sprintf("%d members are called %q", len(found), word),
		Cause: strings.Join(ids, ", "), Hint: "Name one by its ID",
	}
}

// minIDPart is how much of an ID counts as naming somebody.
const minIDPart = 4
