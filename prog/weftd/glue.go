package weftd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/crypto/identity"
	"weft/ipam"
	"weft/mesh"
	"weft/mesh/join"
	"weft/mesh/peer"
	"weft/prog/wire"
	"weft/router"
)

// glue is what keeps mesh, ipam, router and wire in step; these three know nothing of each other.
//
//	mesh:  who is there, where, with which keys  --> wire (sessions), router (transports), ipam (voters, donors)
//	ipam:  who owns which blocks, our claims     --> router (routes, guards), wire (what we accept), mesh (ring changed)
//	wire:  where peers are heard                 --> router (endpoints)
//	machine: own addresses                       --> mesh (own record)
//
// Everything is level-triggered: on any change all is computed anew from the present state and pushed where it differs.
type glue struct {
	mu     sync.Mutex // held while peers are pushed, so that an older state never overwrites a newer one
	peers  []wire.Peer
	local  []netip.Prefix
	inputs router.Input

	relayTold bool         // the wire knows whether it carries packets of others
	sparse    *wire.Sparse // what the wire knows of that; nil: nothing yet

	large atomic.Bool   // sparse says so
	flood atomic.Uint64 // datagrams a second that strangers send, while that is a flood

	wake chan struct{} // capacity 1: the way others are reached has changed

	linksMu sync.Mutex                 // guards all below
	heard   map[peer.ID]netip.AddrPort // where the wire hears each peer
	up      peer.Set
	addrs   []netip.Addr       // this machine's own, of the underlay
	detours map[peer.ID]string // why packets do not go directly
	masked  map[peer.ID]bool   // peers that hear this node: whether at an address that is not its own
}

// glueEvery is how often the state is looked at without a call: the machine's own addresses change silently.
const glueEvery = 5 * time.Second

// glueRest is the least time from one push to the next: of hundreds of pods that start at once not each is worth one.
const glueRest = 100 * time.Millisecond

// replicaRing is the ring's name among the mesh's replicas.
const replicaRing = "ring"

// runGlue pushes until ctx ends.
func (n *node) runGlue(ctx context.Context) error {
	members, blocks, routes := n.mesh.Watch(), n.ring.Watch(), n.router.Watch(ctx)
	tick := time.NewTicker(glueEvery)
	defer tick.Stop()
	if len(n.member.ring) > 0 {
		if err := n.ring.Merge(n.member.ring); err != nil && ctx.Err() == nil {
			n.log.Warn("the ring learnt at the join has bad parts", "err", err)
		}
	}
	for {
		if err := n.push(ctx); err != nil && ctx.Err() == nil {
			n.log.Warn("state not pushed, will try again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(glueRest):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-members:
			n.ring.RosterChanged()
		case <-blocks:
		case <-routes:
		case <-n.glue.wake:
		case <-tick.C:
		}
	}
}

// push brings all parts up to date. One that fails holds up no other: what a member says must never keep this node from
// doing what it can.
func (n *node) push(ctx context.Context) error {
	n.circuits.Cut()
	// Sessions first: who was removed must be gone now.
	errs := []error{n.tellSparse(ctx), n.pushPeers(ctx), n.tellRelay(ctx), n.mendTUN(ctx), n.pushLocal(ctx)}
	u, err := n.readUnderlay(ctx)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	n.noteUnderlay(u)
	if err := n.mesh.Publish(func(r *mesh.Record) { *r = n.describe(*r, u) }); err != nil {
		errs = append(errs, fmt.Errorf("publish own record: %w", err))
	}
	n.pushRouter(ctx, u)
	return errors.Join(errs...)
}

// company lists the members that this node has to do with: nobody when it was removed itself.
func (n *node) company() []peer.Info {
	if _, gone := n.removed(); gone {
		return nil
	}
	return n.remaining()
}

// pushPeers tells the wire who may have a session. A member whose record is not known, or not yet since the start, is on
// the list without a key: the wire keeps the session that it may have.
func (n *node) pushPeers(ctx context.Context) error {
	n.glue.mu.Lock()
	defer n.glue.mu.Unlock()
	members := n.company()
	slices.SortStableFunc(members, func(a, b peer.Info) int { return cmp.Compare(a.JoinSeq, b.JoinSeq) })
	own := [32]byte(n.noise.PublicKey().Bytes())
	self, _ := n.mesh.Peer(n.key.ID())
	peers := []wire.Peer{}
	for _, p := range members {
		if p.Noise == own {
			continue
		}
		peers = append(peers, wire.Peer{
			ID: p.ID, NoisePublic: p.Noise, Endpoints: n.packetEndpoints(p.ID), Secrets: n.pairs.secrets(p.ID),
			Relays: n.relaysFor(p), TCP: dataStreams(p, n.toldEndpoints(p.ID)), Pinned: n.pinned(p, self),
		})
	}
	if n.glue.peers != nil && reflect.DeepEqual(peers, n.glue.peers) {
		return nil
	}
	if err := n.link.SetPeers(ctx, peers); err != nil {
		return fmt.Errorf("tell wire its peers: %w", err)
	}
	n.glue.peers = peers
	return nil
}

// pushLocal tells the wire what it may accept.
func (n *node) pushLocal(ctx context.Context) error {
	local := slices.Clone(n.ring.Blocks()[n.key.ID()])
	if n.glue.local != nil && slices.Equal(local, n.glue.local) {
		return nil
	}
	if err := n.link.SetLocal(ctx, local); err != nil {
		return fmt.Errorf("tell wire what is ours: %w", err)
	}
	n.glue.local = append([]netip.Prefix{}, local...)
	return nil
}

// pushRouter gives the router its input.
func (n *node) pushRouter(ctx context.Context, u underlay) {
	heard := n.lookAtLinks(ctx)
	blocks := n.ring.Blocks()
	in := router.Input{
		Self:          n.key.ID(),
		Pools:         n.pools,
		Blocks:        blocks[n.key.ID()],
		Underlay:      u.addrs,
		UnderlayMTU:   u.mtu,
		Trusted:       n.cfg.Trusted,
		Transports:    n.cfg.Transports,
		NoMasquerade:  n.cfg.NoMasquerade,
		HostAccessAll: n.cfg.HostAccess,
		Ports:         listenPorts(n.cfg),
	}
	if c, ok := n.ring.HostAddress(); ok {
		in.Hosts = addresses(c)
	}
	in.Pods = append(podsOf(n.ring.Claims(), n.ring.Strays()), n.guests(n.ring.Claims())...)
	n.findLent(ctx, in.Pods)
	if n.segments != nil {
		in.Siblings = n.segments.siblings()
	}
	for _, p := range n.company() {
		endpoint := heard[p.ID]
		if !endpoint.IsValid() && len(p.Endpoints) > 0 {
			endpoint = p.Endpoints[0]
		}
		p.LastSeen, p.State = time.Time{}, peer.Alive // rumours and clocks are no reason to plan anew
		p.Reflected, p.Homes = nil, nil               // nor is what the wire alone goes by
		in.Peers = append(in.Peers, router.Peer{
			Info: p, Blocks: blocks[p.ID], Endpoint: endpoint, NoDirect: n.noDirect(p),
		})
	}
	if reflect.DeepEqual(in, n.glue.inputs) {
		return
	}
	n.glue.inputs = in
	n.router.Update(in)
}

// lookAtLinks asks the wire where peers are heard. A path that came up is a good moment for what goes over streams.
func (n *node) lookAtLinks(ctx context.Context) map[peer.ID]netip.AddrPort {
	links, err := n.link.Links(ctx)
	if err != nil {
		return nil
	}
	heard, up := map[peer.ID]netip.AddrPort{}, peer.Set{}
	for _, l := range links {
		heard[l.Peer] = l.Endpoint
		if l.Up {
			up.Add(l.Peer)
		}
	}
	n.glue.linksMu.Lock()
	before := n.glue.up
	n.glue.heard, n.glue.up = heard, up
	n.glue.linksMu.Unlock()
	for id := range up {
		if !before.Has(id) {
			n.mesh.Hint(id)
			n.pairs.hurry(id)
		}
	}
	return heard
}

// heardAt is where the wire hears a peer; the weft port has one number for UDP and TCP.
func (n *node) heardAt(id peer.ID) netip.AddrPort {
	n.glue.linksMu.Lock()
	defer n.glue.linksMu.Unlock()
	return n.glue.heard[id]
}

// listenPorts lists the ports of weft on this machine that pods must not reach.
func listenPorts(cfg Config) []uint16 {
	ports := []uint16{cfg.Listen.Port()}
	if cfg.RelayListen.IsValid() {
		ports = append(ports, cfg.RelayListen.Port())
	}
	if !cfg.MetricsOff {
		ports = append(ports, cfg.MetricsListen.Port())
	}
	return ports
}

// record is what this node says about itself, at the start.
func (n *node) record(r mesh.Record) (mesh.Record, error) {
	u, err := n.readUnderlay(context.Background())
	if err != nil {
		return mesh.Record{}, err
	}
	n.noteUnderlay(u)
	return n.describe(r, u), nil
}

// describe brings the record up to date.
func (n *node) describe(r mesh.Record, u underlay) mesh.Record {
	r.Name = n.name
	r.Endpoints = u.endpoints(n.cfg.Advertise, n.cfg.Listen.Port())
	r.Noise = [32]byte(n.noise.PublicKey().Bytes())
	r.NoiseEpoch = noiseEpoch
	r.WireGuard = [32]byte(n.wgKey.PublicKey().Bytes())
	r.Transports = n.transports()
	r.Trusted = n.cfg.Trusted
	r.MTU = u.mtu
	r.Build = n.cfg.Build
	n.confess(&r)
	if n.ring != nil {
		if c, ok := n.ring.HostAddress(); ok {
			r.Hosts = addresses(c)
		}
	}
	return r
}

// transports lists what works here and is allowed. It is never less than what was found at the start while the router has
// not looked yet: others would take the tunnels down.
func (n *node) transports() []string {
	var names []string
	if n.router == nil || len(n.router.Status().Transports) == 0 {
		return n.found
	}
	for _, t := range n.router.Status().Transports {
		if t.Available && n.allowed(t.Name) {
			names = append(names, t.Name)
		}
	}
	return names
}

func (n *node) allowed(transport string) bool {
	return len(n.cfg.Transports) == 0 || slices.Contains(n.cfg.Transports, transport)
}

// findTransports asks the machine before anybody is told anything.
func (n *node) findTransports() error {
	ctx, cancel := context.WithTimeout(context.Background(), probeTime)
	defer cancel()
	for _, d := range n.drivers() {
		if n.allowed(d.Name) && d.Probe(ctx) == nil {
			n.found = append(n.found, d.Name)
		}
	}
	return nil
}

// probeTime is for asking the machine what it can do.
const probeTime = 5 * time.Second

// addresses lists a claim's addresses, IPv4 first.
func addresses(c ipam.Claim) []netip.Addr {
	var all []netip.Addr
	for _, a := range []netip.Addr{c.V4, c.V6} {
		if a.IsValid() {
			all = append(all, a)
		}
	}
	return all
}

// ringNetwork is the mesh as the allocator sees it.
type ringNetwork struct{ mesh *mesh.Mesh }

var (
	_ ipam.Network = ringNetwork{}
	_ mesh.Differ  = (*ipam.Allocator)(nil) // or whole rings would travel
)

func (r ringNetwork) Call(ctx context.Context, to peer.ID, method string, req []byte) ([]byte, error) {
	return r.mesh.Call(ctx, to, method, req)
}
func (r ringNetwork) Changed(news []byte)  { r.mesh.Announce(replicaRing, news) }
func (r ringNetwork) Peers() []peer.Info   { return r.mesh.Peers() }
func (r ringNetwork) Voters() []peer.Voter { return r.mesh.Roster().Voters() }

// ringRoster is the roster as the allocator sees it.
type ringRoster struct {
	*mesh.Roster
	node *node
}

var _ ipam.Roster = ringRoster{}

func (r ringRoster) Removals() []ipam.Removal {
	var all []ipam.Removal
	for _, x := range r.Roster.Removals() {
		all = append(all, ringRemoval(x))
	}
	return all
}

func ringRemoval(r *identity.Removal) ipam.Removal {
	return ipam.Removal{
		Node: r.Node, Left: r.Reason == identity.Left, Stolen: r.Reason == identity.Stolen, Silent: r.Reason == identity.Silence,
		Incarnation: r.Start,
	}
}

func (r ringRoster) Joining() []peer.Info { return r.node.sponsor.Joining() }

// sponsorRoster is the roster as the sponsor sees it.
type sponsorRoster struct {
	*mesh.Roster
	node *node
}

var _ join.Roster = sponsorRoster{}

func (r sponsorRoster) Voters() []peer.Voter { return r.node.electorate() }

// electorate is who counts when a quorum is asked for.
func (n *node) electorate() []peer.Voter { return n.mesh.Roster().Electorate(n.ring.Fenced()) }

// streams is the circuits as the mesh sees them.
type streams struct{ node *node }

var _ mesh.Streams = streams{}

func (s streams) Dial(ctx context.Context, to peer.ID, kind byte) (net.Conn, error) {
	c, err := s.node.dial(ctx, to, kind)
	if err != nil {
		return nil, err
	}
	return c, nil
}
