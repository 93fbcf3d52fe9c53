// Package controltest is a daemon in memory behind the control socket, for tests of whatever talks to one. It keeps
// the promises of control.Backend towards its callers and touches nothing of the machine; membership, addresses and
// round trips are what the test says they are.
package controltest

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"

	"weft/prog/control"
)

// Token is what TokenCreate and Init hand out; it looks like one and opens nothing.
const Token = "weft1aaaabbbbccccddddeeeeffff2222"

// Created is the moment at which everything happens.
const Created = "2026-01-02T03:04:05Z"

// Backend is a control.Backend. Its exported fields are set before it serves.
type Backend struct {
	Have    control.Status
	Details map[string]control.PeerDetail // by name
	Blocks  []control.Block
	Checks  []control.Check
	Picture control.Graph
	Tried   []control.TriedPath // to any peer
	Advice  string
	Replies []control.PingReply // one per probe; then, or when there are none, nothing answers
	Fail    map[string]error    // by the name of a method: what it returns instead

	mu       sync.Mutex // guards what follows, and Have
	tokens   []control.Token
	issuers  []control.Issuer
	claims   []control.Claim
	reserved []control.Claim
	clients  []control.ClientInfo
	stopped  chan struct{}
}

var _ control.Backend = (*Backend)(nil)

// New returns a backend in the given state. Its issuers are this node, if it is one, and nobody else.
func New(have control.Status) *Backend {
	b := &Backend{Have: have, stopped: make(chan struct{})}
	if have.Node.Issuer {
		b.issuers = []control.Issuer{{ID: have.Node.ID, Name: have.Node.Name, State: control.PeerAlive, Self: true, Root: true}}
	}
	return b
}

// Stopped is closed by Down and Leave.
func (b *Backend) Stopped() <-chan struct{} { return b.stopped }

// begin locks, unless the method is told to fail.
func (b *Backend) begin(method string) error {
	if err := b.Fail[method]; err != nil {
		return err
	}
	b.mu.Lock()
	return nil
}

func (b *Backend) stop() {
	select {
	case <-b.stopped:
	default:
		close(b.stopped)
	}
}

// member refuses what needs a cluster.
func (b *Backend) member() error {
	if b.Have.Cluster.ID == "" {
		return &control.Error{Code: control.NotReady, Message: "this node is in no cluster yet", Hint: "Try: weft init, or weft join TOKEN"}
	}
	return nil
}

// Status returns Have.
func (b *Backend) Status(context.Context) (control.Status, error) {
	if err := b.begin("Status"); err != nil {
		return control.Status{}, err
	}
	defer b.mu.Unlock()
	return b.Have, nil
}

// Init makes this node ready.
func (b *Backend) Init(_ context.Context, r control.InitRequest) (control.InitReply, error) {
	if err := b.begin("Init"); err != nil {
		return control.InitReply{}, err
	}
	defer b.mu.Unlock()
	reply := control.InitReply{Version: control.Version, Existed: b.Have.Cluster.ID != ""}
	if !reply.Existed {
		b.enter(r.Name)
		b.Have.Cluster.Pools = r.Pools
		if len(r.Pools) == 0 {
			b.Have.Cluster.Pools = []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12")}
		}
		reply.Token = Token
	}
	reply.Cluster, reply.Node, reply.Name = b.Have.Cluster.ID, b.Have.Node.ID, b.Have.Node.Name
	reply.Pools = b.Have.Cluster.Pools
	return reply, nil
}

func (b *Backend) enter(name string) {
	b.Have.Cluster.ID = "c7q2k3mvaaaabbbbccccddddee"
	b.Have.Cluster.Members, b.Have.Cluster.Alive = b.Have.Cluster.Members+1, b.Have.Cluster.Alive+1
	b.Have.Node.State, b.Have.Node.Reason = control.NodeReady, ""
	if name != "" {
		b.Have.Node.Name = name
	}
}

// Join takes Token only.
func (b *Backend) Join(_ context.Context, r control.JoinRequest) (control.JoinReply, error) {
	if err := b.begin("Join"); err != nil {
		return control.JoinReply{}, err
	}
	defer b.mu.Unlock()
	if r.Token != Token {
		return control.JoinReply{}, &control.Error{
			Code: control.Denied, Message: "this token is not valid", Cause: "its check does not match",
			Hint: "Was it copied whole? Make a new one on a member: weft token create",
		}
	}
	reply := control.JoinReply{Version: control.Version, Existed: b.Have.Cluster.ID != ""}
	if !reply.Existed {
		b.enter(r.Name)
		reply.Sponsor = "alpha"
	}
	reply.Cluster, reply.Node, reply.Name = b.Have.Cluster.ID, b.Have.Node.ID, b.Have.Node.Name
	return reply, nil
}

// Leave stops.
func (b *Backend) Leave(_ context.Context, r control.LeaveRequest) (control.LeaveReply, error) {
	if err := b.begin("Leave"); err != nil {
		return control.LeaveReply{}, err
	}
	defer b.mu.Unlock()
	b.stop()
	reply := control.LeaveReply{Version: control.Version}
	if r.Purge {
		reply.Notes = []string{"Removed the state."}
	}
	return reply, nil
}

// Down stops.
func (b *Backend) Down(context.Context) error {
	if err := b.begin("Down"); err != nil {
		return err
	}
	defer b.mu.Unlock()
	b.stop()
	return nil
}

// TokenCreate hands out Token, under a new ID each time.
func (b *Backend) TokenCreate(_ context.Context, r control.TokenRequest) (control.TokenReply, error) {
	if err := b.begin("TokenCreate"); err != nil {
		return control.TokenReply{}, err
	}
	defer b.mu.Unlock()
	if err := b.member(); err != nil {
		return control.TokenReply{}, err
	}
	t := control.Token{ID: fmt.Sprintf("token%d", len(b.tokens)+1), Expires: Created, Uses: r.Uses, Ephemeral: r.Ephemeral}
	b.tokens = append(b.tokens, t)
	return control.TokenReply{Version: control.Version, ID: t.ID, Token: Token, Expires: t.Expires}, nil
}

// TokenList lists what TokenCreate made.
func (b *Backend) TokenList(context.Context) (control.Tokens, error) {
	if err := b.begin("TokenList"); err != nil {
		return control.Tokens{}, err
	}
	defer b.mu.Unlock()
	return control.Tokens{Version: control.Version, Tokens: slices.Clone(b.tokens)}, nil
}

// TokenRevoke marks one of them.
func (b *Backend) TokenRevoke(_ context.Context, id string) error {
	if err := b.begin("TokenRevoke"); err != nil {
		return err
	}
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.tokens, func(t control.Token) bool { return t.ID == id })
	if i < 0 {
		return &control.Error{Code: control.NotFound, Message: fmt.Sprintf("there is no invitation %s", id), Hint: "Try: weft token list"}
	}
	b.tokens[i].Revoked = true
	return nil
}

// Attach gives out 10.32.0.2, 10.32.0.3, ... and their linked IPv6 addresses.
func (b *Backend) Attach(_ context.Context, r control.AttachRequest) (control.AttachReply, error) {
	if err := b.begin("Attach"); err != nil {
		return control.AttachReply{}, err
	}
	defer b.mu.Unlock()
	if err := b.member(); err != nil {
		return control.AttachReply{}, err
	}
	if r.Container == "" {
		r.Container = path.Base(r.Netns)
	}
	reply := control.AttachReply{Version: control.Version, Ifname: "eth0", MTU: 1420}
	if r.Ifname != "" {
		reply.Ifname = r.Ifname
	}
	for _, c := range b.claims {
		if c.Netns == r.Netns && c.Ifname == reply.Ifname {
			reply.Addresses, reply.Existed = append(reply.Addresses, c.Address), true
		}
	}
	if reply.Existed {
		return reply, nil
	}
	v4 := r.IP
	if !v4.IsValid() && len(r.IPs) > 0 {
		v4 = r.IPs[0]
	}
	if !v4.IsValid() {
		v4 = netip.AddrFrom4([4]byte{10, 32, 0, byte(2 + len(b.claims)/2)})
	}
	tail := v4.As4()
	v6 := netip.AddrFrom16([16]byte{0xfd, 1, 12: tail[0], 13: tail[1], 14: tail[2], 15: tail[3]})
	for _, a := range []netip.Addr{v4, v6} {
		b.claims = append(b.claims, control.Claim{
			Address: a, Container: r.Container, Ifname: reply.Ifname, Netns: r.Netns,
			Pod: r.Pod, Created: Created,
		})
		reply.Addresses = append(reply.Addresses, a)
	}
	return reply, nil
}

// Detach takes them back.
func (b *Backend) Detach(_ context.Context, r control.DetachRequest) (control.DetachReply, error) {
	if err := b.begin("Detach"); err != nil {
		return control.DetachReply{}, err
	}
	defer b.mu.Unlock()
	reply := control.DetachReply{Version: control.Version}
	b.claims = slices.DeleteFunc(b.claims, func(c control.Claim) bool {
		gone := c.Netns == r.Netns && (r.Ifname == "" || c.Ifname == r.Ifname)
		if gone {
			reply.Addresses = append(reply.Addresses, c.Address)
		}
		return gone
	})
	return reply, nil
}

// PeerList is the peers of Have.
func (b *Backend) PeerList(context.Context) (control.Peers, error) {
	if err := b.begin("PeerList"); err != nil {
		return control.Peers{}, err
	}
	defer b.mu.Unlock()
	return control.Peers{Version: control.Version, Peers: b.Have.Peers}, nil
}

// PeerShow looks into Details.
func (b *Backend) PeerShow(_ context.Context, name string) (control.PeerDetail, error) {
	if err := b.begin("PeerShow"); err != nil {
		return control.PeerDetail{}, err
	}
	defer b.mu.Unlock()
	d, ok := b.Details[name]
	if !ok {
		return d, b.noPeer(name)
	}
	return d, nil
}

// PeerRemove removes the peers that are not alive, or any with Force or Stolen.
func (b *Backend) PeerRemove(_ context.Context, r control.RemoveRequest) (control.RemoveReply, error) {
	reply := control.RemoveReply{Version: control.Version, Told: b.Have.Cluster.Alive, Members: b.Have.Cluster.Members}
	if err := b.begin("PeerRemove"); err != nil {
		return reply, err
	}
	defer b.mu.Unlock()
	var found []*control.Peer
	for _, name := range r.Peers {
		i := slices.IndexFunc(b.Have.Peers, func(p control.Peer) bool { return p.Name == name || p.ID == name })
		if i < 0 {
			return reply, b.noPeer(name)
		}
		p := &b.Have.Peers[i]
		if p.State == control.PeerAlive && !r.Force && !r.Stolen {
			return reply, &control.Error{Code: control.Conflict, Message: p.Name + " is alive"}
		}
		found = append(found, p)
	}
	reason := "by hand"
	if r.Stolen {
		reason = "stolen"
	}
	for _, p := range found {
		p.State, p.Reason = control.PeerRemoved, "removed "+reason
		reply.Removed = append(reply.Removed, control.RemovedPeer{ID: p.ID, Name: p.Name, Reason: reason})
	}
	return reply, nil
}

func (b *Backend) noPeer(name string) error {
	return &control.Error{Code: control.NotFound, Message: fmt.Sprintf("there is no peer %q", name), Hint: "Try: weft peer list"}
}

// IssuerList lists them.
func (b *Backend) IssuerList(context.Context) (control.Issuers, error) {
	if err := b.begin("IssuerList"); err != nil {
		return control.Issuers{}, err
	}
	defer b.mu.Unlock()
	return control.Issuers{Version: control.Version, Issuers: slices.Clone(b.issuers)}, nil
}

// IssuerAdd takes peers of Have.
func (b *Backend) IssuerAdd(_ context.Context, name string) error {
	if err := b.begin("IssuerAdd"); err != nil {
		return err
	}
	defer b.mu.Unlock()
	for _, p := range b.Have.Peers {
		if p.Name == name {
			b.issuers = append(b.issuers, control.Issuer{ID: p.ID, Name: p.Name, State: p.State})
			return nil
		}
	}
	return b.noPeer(name)
}

// IssuerRemove takes what IssuerAdd took.
func (b *Backend) IssuerRemove(_ context.Context, name string) error {
	if err := b.begin("IssuerRemove"); err != nil {
		return err
	}
	defer b.mu.Unlock()
	before := len(b.issuers)
	b.issuers = slices.DeleteFunc(b.issuers, func(i control.Issuer) bool { return i.Name == name })
	if len(b.issuers) == before {
		return b.noPeer(name)
	}
	return nil
}

// IPList lists what is attached.
func (b *Backend) IPList(context.Context) (control.Claims, error) {
	if err := b.begin("IPList"); err != nil {
		return control.Claims{}, err
	}
	defer b.mu.Unlock()
	return control.Claims{Version: control.Version, Claims: slices.Clone(b.claims), Reserved: slices.Clone(b.reserved)}, nil
}

// IPClaim keeps 10.32.0.200, or what is asked for.
func (b *Backend) IPClaim(_ context.Context, r control.IPClaimRequest) (control.IPClaimReply, error) {
	if err := b.begin("IPClaim"); err != nil {
		return control.IPClaimReply{}, err
	}
	defer b.mu.Unlock()
	if err := b.member(); err != nil {
		return control.IPClaimReply{}, err
	}
	c := control.Claim{Address: r.Address, Container: cmp.Or(r.Name, "hand-1"), Created: Created}
	if !c.Address.IsValid() {
		c.Address = netip.MustParseAddr("10.32.0.200")
	}
	b.reserved = append(b.reserved, c)
	return control.IPClaimReply{Version: control.Version, Name: c.Container, Addresses: []netip.Addr{c.Address}}, nil
}

// IPRelease gives up what IPClaim kept.
func (b *Backend) IPRelease(_ context.Context, r control.IPReleaseRequest) (control.IPReleaseReply, error) {
	if err := b.begin("IPRelease"); err != nil {
		return control.IPReleaseReply{}, err
	}
	defer b.mu.Unlock()
	reply := control.IPReleaseReply{Version: control.Version}
	b.reserved = slices.DeleteFunc(b.reserved, func(c control.Claim) bool {
		meant := c.Container == r.What || c.Address.String() == r.What
		if meant {
			reply.Addresses = append(reply.Addresses, c.Address)
		}
		return meant
	})
	if len(reply.Addresses) == 0 {
		return reply, &control.Error{Code: control.NotFound, Message: "no address is kept by hand under " + r.What, Hint: "Try: weft ip list"}
	}
	return reply, nil
}

// IPRing lists Blocks.
func (b *Backend) IPRing(context.Context) (control.Ring, error) {
	if err := b.begin("IPRing"); err != nil {
		return control.Ring{}, err
	}
	defer b.mu.Unlock()
	return control.Ring{Version: control.Version, Blocks: b.Blocks}, nil
}

// Ping plays Replies without waiting, over and over until the count is reached.
func (b *Backend) Ping(ctx context.Context, r control.PingRequest, reply func(control.PingReply) error) error {
	if err := b.begin("Ping"); err != nil {
		return err
	}
	known := slices.ContainsFunc(b.Have.Peers, func(p control.Peer) bool { return p.Name == r.Peer || strings.HasPrefix(p.ID, r.Peer) })
	b.mu.Unlock()
	if !known {
		return b.noPeer(r.Peer)
	}
	for i := 0; r.Count == 0 || i < r.Count; i++ {
		p := control.PingReply{Lost: "no answer within 2s"}
		if i < len(b.Replies) {
			p = b.Replies[i]
		} else if r.Count == 0 {
			<-ctx.Done()
			return ctx.Err()
		}
		p.Seq, p.Peer = i+1, r.Peer
		if err := reply(p); err != nil {
			return err
		}
	}
	return nil
}

// Doctor returns Checks, and with a peer what was tried to reach it.
func (b *Backend) Doctor(_ context.Context, r control.DoctorRequest) (control.Doctor, error) {
	if err := b.begin("Doctor"); err != nil {
		return control.Doctor{}, err
	}
	defer b.mu.Unlock()
	doc := control.Doctor{Version: control.Version, Checks: b.Checks}
	if r.Peer != "" {
		doc.Peer, doc.Tried, doc.Advice = r.Peer, b.Tried, b.Advice
	}
	return doc, nil
}

// Graph returns Picture.
func (b *Backend) Graph(context.Context) (control.Graph, error) {
	if err := b.begin("Graph"); err != nil {
		return control.Graph{}, err
	}
	defer b.mu.Unlock()
	return b.Picture, b.member()
}

// Report carelessly quotes a token, which a reader must never see.
func (b *Backend) Report(context.Context) (control.Report, error) {
	if err := b.begin("Report"); err != nil {
		return control.Report{}, err
	}
	defer b.mu.Unlock()
	return control.Report{
		Version: control.Version, Created: Created, Build: "test", OS: "test", Status: b.Have,
		Log: []string{"somebody typed weft up --join " + Token},
	}, nil
}
