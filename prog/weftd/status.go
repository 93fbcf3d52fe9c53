package weftd

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/ipam"
	"weft/mesh/peer"
	"weft/prog/control"
	"weft/router"
)

// Status is the whole picture. It is made from snapshots that each part keeps, so it answers while a disk, a peer or the
// kernel hangs.
func (d *daemon) Status(ctx context.Context) (control.Status, error) {
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
		n.status(ctx, &s)
	}
	if ending != "" {
		s.Node.State, s.Node.Reason = control.NodeStopping, ending
	}
	return s, nil
}

// status fills in what a member knows.
func (n *node) status(ctx context.Context, s *control.Status) {
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
	if c, ok := n.ring.HostAddress(); ok {
		s.Node.Overlay = addresses(c)
	}
	_, s.Node.Voter = n.member.certificate.Voter()
	_, s.Node.Issuer = roster.Delegation(n.key.ID())
	switch {
	case !routes.Ready:
		s.Node.State, s.Node.Reason = control.NodeJoining, cmp.Or(routes.Reason, "routes and guard are being set up")
	case ring.State == ipam.StateWaiting:
		s.Node.State, s.Node.Reason = control.NodeJoining, ring.Reason
	case routes.Reason != "":
		s.Node.Reason = routes.Reason
	}

	s.Cluster = control.Cluster{ID: clusterName(n.member.cluster), Pools: n.pools, Encryption: control.EncryptionRequired,
		Members: 1, Alive: 1}
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
		s.Peers = append(s.Peers, peerStatus(info, byPeer[info.ID], blocks[info.ID], time.Now()))
	}
	s.IPAM = control.IPAM{State: ring.State, Reason: ring.Reason, Blocks: ring.Blocks, Used: uint64(ring.Used),
		Free: uint64(ring.Free), Unreachable: uint64(ring.Unreachable)}
	if issuers := n.liveIssuers(); issuers < 2 && s.Cluster.Members > 1 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%d live issuer: when it is gone, nobody can join. Try: weft issuer add NAME", issuers))
	}
	s.Warnings = append(s.Warnings, routes.Notes...)
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
	} else if r.Link.Reason != "" {
		p.Reason = strings.TrimPrefix(p.Reason+"; "+r.Link.Reason, "; ")
	}
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
	var byName, byID []peer.Info
	self, _ := n.mesh.Peer(n.key.ID())
	for _, info := range append(n.mesh.Peers(), self) {
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
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return peer.Info{}, &control.Error{Code: control.NotFound, Message: fmt.Sprintf("no member is called %q", word),
			Hint: "Try: weft peer list"}
	}
	var ids []string
	for _, f := range found {
		ids = append(ids, f.ID.String())
	}
	slices.Sort(ids)
	return peer.Info{}, &control.Error{Code: control.Usage, Message: fmt.Sprintf("%d members are called %q", len(found), word),
		Cause: strings.Join(ids, ", "), Hint: "Name one by its ID"}
}

// minIDPart is how much of an ID counts as naming somebody.
const minIDPart = 4
