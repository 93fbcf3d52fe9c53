package weftd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"weft/ipam"
	"weft/mesh/join"
	"weft/mesh/peer"
	"weft/prog/control"
	"weft/router"
)

var _ control.Backend = (*daemon)(nil)

// serve answers the control socket until ctx ends.
func (d *daemon) serve(ctx context.Context) error {
	return control.Serve(ctx, control.Config{Path: d.cfg.Socket, Backend: d, Log: d.log})
}

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

// Down stops daemon and wire. What is in the kernel stays, so that nothing leaks while nobody looks.
func (d *daemon) Down(context.Context) error {
	n, _ := d.current()
	d.finish("weft down", func(ctx context.Context) error {
		if n == nil {
			return nil
		}
		_, err := stopWire(ctx, d.cfg, d.state)
		return err
	})
	return nil
}

// Leave hands back the node's space, tells the others and forgets the membership.
func (d *daemon) Leave(ctx context.Context, r control.LeaveRequest) (control.LeaveReply, error) {
	reply := control.LeaveReply{Version: control.Version}
	n, err := d.current()
	if err != nil && !r.Purge {
		return reply, err
	}
	if n != nil {
		if claims := n.ring.Claims(); len(claims) > 0 {
			return reply, &control.Error{Code: control.Conflict, Message: fmt.Sprintf("%d pods are still attached", len(claims)),
				Cause: claims[0].Container + " among them", Hint: "Detach them first: weft detach NETNS"}
		}
		if err := n.ring.HandBack(ctx); err != nil {
			reply.Notes = append(reply.Notes, "Space not handed back: "+err.Error()+".")
		}
		if err := n.mesh.Leave(ctx); err != nil {
			reply.Notes = append(reply.Notes, "The others were not told: "+err.Error()+".")
		}
	}
	d.finish("weft leave", func(ctx context.Context) error {
		_, err := stopWire(ctx, d.cfg, d.state)
		if r.Purge {
			return errors.Join(err, d.purge(ctx, n))
		}
		return errors.Join(err, d.state.forget())
	})
	return reply, nil
}

// Attach gives a namespace an interface and addresses.
func (d *daemon) Attach(ctx context.Context, r control.AttachRequest) (control.AttachReply, error) {
	n, err := d.current()
	if err != nil {
		return control.AttachReply{}, err
	}
	reply, err := n.attach(ctx, r)
	return reply, explain(err)
}

func (n *node) attach(ctx context.Context, r control.AttachRequest) (control.AttachReply, error) {
	if _, err := os.Stat(r.Netns); err != nil {
		return control.AttachReply{}, &control.Error{Code: control.NotFound, Message: "there is no namespace " + r.Netns,
			Cause: errors.Unwrap(err).Error(), Hint: "Try: ip netns list"}
	}
	if r.Container == "" {
		r.Container = containerOf(r.Netns)
	}
	if r.Ifname == "" {
		r.Ifname = "eth0"
	}
	existed := slices.ContainsFunc(n.ring.Claims(), func(c ipam.Claim) bool {
		return c.Container == r.Container && c.IfName == r.Ifname
	})
	claim, err := n.ring.Claim(ctx, ipam.Request{Container: r.Container, IfName: r.Ifname, NetNS: r.Netns, Pod: r.Pod, Address: r.IP})
	if err != nil {
		return control.AttachReply{}, err
	}
	made, err := n.router.Attach(ctx, router.AttachRequest{
		Pod:   router.Pod{Name: r.Container, IfName: r.Ifname, V4: claim.V4, V6: claim.V6},
		NetNS: r.Netns,
	})
	if err != nil {
		if existed {
			return control.AttachReply{}, err
		}
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		_, released := n.ring.Release(undo, r.Container, r.Ifname)
		return control.AttachReply{}, errors.Join(err, released)
	}
	reply := control.AttachReply{Version: control.Version, Pools: n.pools, Ifname: made.IfName, HostIf: made.HostIf, MTU: made.MTU,
		Existed: existed}
	for _, a := range []netip.Addr{made.V4, made.V6} {
		if a.IsValid() {
			reply.Addresses = append(reply.Addresses, a)
		}
	}
	for _, a := range []netip.Addr{made.Gateway4, made.Gateway6} {
		if a.IsValid() {
			reply.Gateways = append(reply.Gateways, a)
		}
	}
	return reply, nil
}

// undoTime is for taking back what a failed request began.
const undoTime = 5 * time.Second

// containerOf names the pod of a namespace that nobody named: as the file under /run/netns is called, else by inode,
// which is the same under whatever path.
func containerOf(netns string) string {
	dir, name := filepath.Split(filepath.Clean(netns))
	if dir == "/run/netns/" || dir == "/var/run/netns/" {
		return name
	}
	if fi, err := os.Stat(netns); err == nil {
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			return fmt.Sprintf("netns-%d", st.Ino)
		}
	}
	return netns
}

// Detach takes back what Attach gave.
func (d *daemon) Detach(ctx context.Context, r control.DetachRequest) (control.DetachReply, error) {
	n, err := d.current()
	if err != nil {
		return control.DetachReply{}, err
	}
	reply, err := n.detach(ctx, r)
	return reply, explain(err)
}

func (n *node) detach(ctx context.Context, r control.DetachRequest) (control.DetachReply, error) {
	reply := control.DetachReply{Version: control.Version}
	if r.Container == "" {
		r.Container = containerOf(r.Netns)
	}
	for _, c := range n.ring.Claims() {
		if c.Container != r.Container && (r.Netns == "" || c.NetNS != r.Netns) || r.Ifname != "" && c.IfName != r.Ifname {
			continue
		}
		if err := n.router.Detach(ctx, c.Container, c.IfName); err != nil {
			return reply, err
		}
		released, err := n.ring.Release(ctx, c.Container, c.IfName)
		if err != nil {
			return reply, err
		}
		for _, c := range released {
			reply.Addresses = append(reply.Addresses, addresses(c)...)
		}
	}
	return reply, nil
}

// PeerList is the peers of the status.
func (d *daemon) PeerList(ctx context.Context) (control.Peers, error) {
	s, err := d.Status(ctx)
	return control.Peers{Version: control.Version, Peers: s.Peers}, err
}

// PeerShow is all that is known of one member.
func (d *daemon) PeerShow(ctx context.Context, word string) (control.PeerDetail, error) {
	n, err := d.current()
	if err != nil {
		return control.PeerDetail{}, err
	}
	info, err := n.find(word)
	if err != nil {
		return control.PeerDetail{}, err
	}
	detail := control.PeerDetail{Version: control.Version, Build: info.Build, Voter: !info.Ephemeral, Issuer: info.Issuer,
		JoinSeq: info.JoinSeq, Endpoints: info.Endpoints, Transports: info.Transports, Trusted: info.Trusted}
	var r router.PeerStatus
	for _, p := range n.router.Status().Peers {
		if p.Peer == info.ID {
			r = p
		}
	}
	detail.Peer = peerStatus(info, r, n.ring.Blocks()[info.ID], time.Now())
	if r.Transport != "" {
		detail.Links = append(detail.Links, control.Link{Transport: r.Transport, Up: r.Link.Up, InUse: true, Endpoint: r.Link.Endpoint,
			Reason: r.Link.Reason, MTU: r.Link.MTU, RTTms: float64(r.Link.RTT.Microseconds()) / 1000, Loss: r.Link.Loss})
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
			list.Claims = append(list.Claims, control.Claim{Address: a, Container: c.Container, Ifname: c.IfName, Netns: c.NetNS,
				Pod: c.Pod, Created: c.Created.UTC().Format(time.RFC3339)})
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
		list.Blocks = append(list.Blocks, control.Block{Prefix: run.Block, Owner: run.Owner.String(), OwnerName: info.Name,
			View: run.View, Seq: run.Seq})
	}
	return list, nil
}

// Report is everything that helps to understand a fault, and no secret.
func (d *daemon) Report(ctx context.Context) (control.Report, error) {
	r := control.Report{Version: control.Version, Created: time.Now().UTC().Format(time.RFC3339), Build: d.cfg.Build,
		OS: kernelRelease(), Config: d.cfg.show(), Log: d.lines.last()}
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

// explain makes a sentence for people of an error of the parts.
func explain(err error) error {
	var refused *join.Error
	var inUse *stateInUseError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		code := control.Failed
		switch refused.Code {
		case join.CodeNoQuorum:
			code = control.NoQuorum
		case join.CodeNotToken, join.CodeTruncated:
			code = control.Usage
		case join.CodeBusy:
			code = control.Busy
		}
		return &control.Error{Code: code, Message: refused.Sentence, Cause: refused.Cause, Hint: refused.Hint}
	case errors.As(err, &inUse):
		return &control.Error{Code: control.Conflict, Message: inUse.Error(),
			Hint: "Is it running? Try: weft status; or give this one its own --state and --socket"}
	case errors.Is(err, syscall.EADDRINUSE):
		return &control.Error{Code: control.Conflict, Message: "a port of weft is taken by another program", Cause: err.Error(),
			Hint: "Try: ss -lnptu; or choose another one with --listen"}
	}
	return err
}

// portError names the port that could not be opened.
func portError(network string, listen netip.AddrPort, err error) error {
	return fmt.Errorf("open %s port %d: %w", strings.ToUpper(network), listen.Port(), err)
}

// peerName is the name of a member, or the short form of its ID.
func (n *node) peerName(id peer.ID) string {
	if info, ok := n.mesh.Peer(id); ok && info.Name != "" {
		return info.Name
	}
	return id.Short()
}
