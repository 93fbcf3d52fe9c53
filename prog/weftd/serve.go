package weftd

import (
	"context"
	"strings"
	"time"

	"weft/mesh/peer"
	"weft/prog/control"
	"weft/router"
)

var _ control.Backend = (*daemon)(nil)

// Init makes a cluster.
func (d *daemon) Init(ctx context.Context, r control.InitRequest) (control.InitReply, error) {
	reply, err := d.makeCluster(ctx, r)
	return reply, explain(err)
}

// Join enters a cluster.
func (d *daemon) Join(ctx context.Context, r control.JoinRequest) (control.JoinReply, error) {
	reply, err := d.joinCluster(ctx, r)
	return reply, explain(err)
}

// PeerList is the peers of the status.
func (d *daemon) PeerList(ctx context.Context) (control.Peers, error) {
	s, err := d.Status(ctx)
	return control.Peers{Version: control.Version, Peers: s.Peers}, err
}

// PeerShow is all that is known of one member.
func (d *daemon) PeerShow(_ context.Context, word string) (control.PeerDetail, error) {
	n, err := d.current()
	if err != nil {
		return control.PeerDetail{}, err
	}
	info, err := n.find(word)
	if err != nil {
		return control.PeerDetail{}, err
	}
	detail := control.PeerDetail{
		Version: control.Version, Build: info.Build, Voter: !info.Ephemeral, Issuer: info.Issuer,
		JoinSeq: info.JoinSeq, Endpoints: info.Endpoints, Transports: info.Transports, Trusted: info.Trusted,
	}
	var r router.PeerStatus
	for _, p := range n.router.Status().Peers {
		if p.Peer == info.ID {
			r = p
		}
	}
	detail.Peer = peerStatus(info, r, n.ring.Blocks()[info.ID], time.Now())
	n.showWay(&detail.Peer, info, r)
	if r.Transport != "" {
		detail.Links = append(detail.Links, control.Link{
			Transport: r.Transport, Up: r.Link.Up, InUse: true, Endpoint: r.Link.Endpoint,
			Reason: r.Link.Reason, MTU: r.Link.MTU, RTTms: float64(r.Link.RTT.Microseconds()) / 1000, Loss: r.Link.Loss,
		})
	}
	for _, no := range r.Rejected {
		detail.Links = append(detail.Links, control.Link{Transport: no.Transport, Reason: no.Reason})
	}
	return detail, nil
}

// IPList lists the attached pods.
func (d *daemon) IPList(context.Context) (control.Claims, error) {
	list := control.Claims{Version: control.Version}
	n, err := d.current()
	if err != nil {
		return list, err
	}
	for _, c := range n.ring.Claims() {
		for _, a := range addresses(c) {
			one := control.Claim{Address: a, Container: c.Container, Created: c.Created.UTC().Format(time.RFC3339)}
			if c.ByHand() {
				list.Reserved = append(list.Reserved, one)
				continue
			}
			one.Ifname, one.Netns, one.Pod, one.Aliases = c.IfName, c.NetNS, c.Pod, strings.Fields(c.Aliases)
			list.Claims = append(list.Claims, one)
		}
	}
	return list, nil
}

// IPRing lists who owns what.
func (d *daemon) IPRing(context.Context) (control.Ring, error) {
	list := control.Ring{Version: control.Version}
	n, err := d.current()
	if err != nil {
		return list, err
	}
	for _, run := range n.ring.Runs() {
		info, _ := n.mesh.Peer(run.Owner)
		list.Blocks = append(list.Blocks, control.Block{
			Prefix: run.Block, Owner: run.Owner.String(), OwnerName: info.Name,
			View: run.View, Seq: run.Seq,
		})
	}
	return list, nil
}

// Report is everything that helps to understand a fault, and no secret.
func (d *daemon) Report(ctx context.Context) (control.Report, error) {
	r := control.Report{
		Version: control.Version, Created: time.Now().UTC().Format(time.RFC3339), Build: d.cfg.Build,
		OS: kernelRelease(), Config: d.cfg.show(), Log: d.lines.last(),
	}
	var err error
	if r.Status, err = d.Status(ctx); err != nil {
		return r, err
	}
	if r.Doctor, err = d.Doctor(ctx, control.DoctorRequest{}); err != nil {
		return r, err
	}
	if n, _ := d.current(); n != nil {
		r.Claims, _ = d.IPList(ctx)
		r.Ring, _ = d.IPRing(ctx)
		r.Tokens, _ = d.TokenList(ctx)
		r.Issuers, _ = d.IssuerList(ctx)
		r.Counters = n.counters(ctx)
	}
	return r, nil
}

// peerName is the name of a member, or the short form of its ID.
func (n *node) peerName(id peer.ID) string {
	if info, ok := n.mesh.Peer(id); ok && info.Name != "" {
		return info.Name
	}
	return id.Short()
}
