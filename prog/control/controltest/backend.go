// Package controltest is a daemon in memory behind the control socket, for tests of whatever talks to one. It keeps
// the promises of control.Backend towards its callers and touches nothing of the machine; membership, addresses and
// round trips are what the test says they are.
package controltest

import (
	"context"
	"fmt"
	"net/netip"
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
