package weftd

import (
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"weft/crypto/identity"
	"weft/ipam"
	"weft/ipam/ring"
	"weft/mesh"
	"weft/mesh/circuit"
	"weft/mesh/join"
	"weft/mesh/peer"
	"weft/prog/wire"
	"weft/router"
	"weft/router/host"
)

// node is this machine as a member of a cluster: the parts, and what joins them. It exists from the moment that there is
// a membership until the daemon ends.
type node struct {
	cfg     Config
	log     *slog.Logger
	state   *stateDir
	host    *host.Host
	member  *membership
	key     identity.Key
	root    identity.Key // the zero Key where it is not held
	noise   *ecdh.PrivateKey
	wgKey   *ecdh.PrivateKey // of the WireGuard devices
	name    string
	pools   []netip.Prefix // both families
	started time.Time
	found   []string // transports that work here, as far as was seen at the start

	link     *wirelink
	circuits *circuit.Circuits
	mesh     *mesh.Mesh
	ring     *ipam.Allocator
	book     io.Closer // of the ring, which closes it when it has run
	router   *router.Router
	pairs    *pairs
	sponsor  *join.Sponsor
	lingers  lingers

	renumbered atomic.Uint64 // pods, since the start

	segments *segments // nil without Docker
	glue     glue
	reach    reach
	punches  chan punchMessage
	echoes   echoes
	clients  clients

	retired  context.Context // ends when this node was removed and its machine joins as another
	retire   context.CancelFunc
	ended    chan struct{}          // closed when run has returned
	staysOut atomic.Pointer[string] // why it may not come back by itself
	holds    holds

	reclaimed reclaimer
}

// newNode builds the parts from what is on disk. It starts nothing and changes nothing on the machine.
func newNode(cfg Config, state *stateDir, h *host.Host, m *membership, key identity.Key) (*node, error) {
	n := &node{
		cfg: cfg, log: cfg.Log, state: state, host: h, member: m, key: key, started: time.Now(),
		name: m.certificate.Name(), pools: m.pools(), lingers: newLingers(),
		punches: make(chan punchMessage, punchQueue), echoes: newEchoes(echoTime), glue: glue{wake: make(chan struct{}, 1)},
	}
	n.cfg.Advertise = m.advertised(cfg)
	n.retired, n.retire = context.WithCancel(context.Background())
	n.ended = make(chan struct{})
	var err error
	if n.root, err = state.rootOf(m.cluster); err != nil {
		if foreign := (*foreignRootError)(nil); !errors.As(err, &foreign) {
			return nil, err
		}
		n.log.Warn("root key not used", "err", err)
	}
	if n.noise, err = state.noiseKey(); err != nil {
		return nil, err
	}
	if n.wgKey, err = state.wireGuardKey(); err != nil {
		return nil, err
	}
	for _, build := range []func() error{n.buildLink, n.findTransports, n.buildMesh, n.buildRing, n.buildRouter, n.buildClients, n.buildSegments, n.buildSponsor} {
		if err := build(); err != nil {
			if n.book != nil { // it will be opened again
				err = errors.Join(err, n.book.Close())
			}
			return nil, err
		}
	}
	return n, nil
}

func (n *node) buildLink() error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	n.link = newWirelink(n.log, wire.Options{
		Exe:     exe,
		Socket:  n.state.file(fileWireSocket),
		LogFile: n.state.file(fileWireLog),
		Version: n.cfg.Build,
		Log:     n.log,
		Launch:  launchUnit(n.cfg.WireUnit),
	})
	n.link.identity = n.wireIdentity
	n.link.equip = n.equip
	return nil
}

func (n *node) buildMesh() error {
	n.pairs = newPairs(n.log, n.key.ID())
	var err error
	n.circuits, err = circuit.New(circuit.Config{
		Key:       n.key,
		Root:      n.member.cluster.Root,
		Cert:      func() *identity.Certificate { return n.member.certificate },
		Allowed:   n.admitted,
		Endpoints: n.endpointsOf,
		Relays:    n.streamRelays,
		Carries:   func() bool { return !n.cfg.NoRelay },
		Ring:      n.ringUp,
		Log:       n.log,
	})
	if err != nil {
		return err
	}
	n.pairs.dial = n.dial
	n.pairs.tell = n.pushPeers

	var seeds []peer.ID
	if !n.member.sponsor.IsZero() {
		seeds = append(seeds, n.member.sponsor)
	}
	saved, err := mesh.SavedRecord(n.state)
	if err != nil {
		return err
	}
	n.recall(saved)
	record, err := n.record(mesh.Record{Name: n.name})
	if err != nil {
		return err
	}
	n.mesh, err = mesh.New(mesh.Config{
		Key:         n.key,
		Cluster:     n.member.cluster,
		Certificate: n.member.certificate,
		Items:       n.member.items,
		Records:     n.member.records,
		Record:      record,
		Seeds:       seeds,
		Packets:     n.link,
		Streams:     streams{n},
		Store:       n.state,
		Log:         n.log,
	})
	if err != nil {
		return err
	}
	n.pairs.members, n.pairs.easier = n.mesh.Peers, n.easierToDial
	n.mesh.Handle(methodHeard, n.serveHeard)
	n.mesh.Listen(datagramRing, n.hearRing)
	n.mesh.Listen(datagramPunch, n.hearPunch)
	n.mesh.Listen(datagramEcho, n.takeEcho)
	n.mesh.Handle(methodWays, n.serveWays)
	return nil
}

func (n *node) buildRing() error {
	var pools []ring.Pool
	for _, p := range n.member.cluster.Pools {
		pools = append(pools, ring.Pool{Prefix: p.Prefix, AtomBits: p.AtomBits})
	}
	universe, err := ring.NewUniverse(n.member.cluster.ID(), n.member.cluster.Founder, pools)
	if err != nil {
		return fmt.Errorf("cut pools: %w", err)
	}
	store, err := ipam.OpenBolt(n.state.file(fileDB))
	if err != nil {
		return err
	}
	n.ring, err = ipam.New(ipam.Config{
		Universe: universe,
		Linked6:  n.member.cluster.Linked6,
		Signer:   n.key,
		Keys:     n.publicKey,
		Network:  ringNetwork{n.mesh},
		Roster:   ringRoster{n.mesh.Roster(), n},
		Store:    store,
		Log:      n.log,
		Strict:   n.cfg.StrictRestart,
		CoolFor:  n.cfg.AddressRest,
		Lingers:  func(a netip.Addr) bool { return n.router.Lingers(a) },
	})
	if err != nil {
		return errors.Join(err, store.Close())
	}
	n.book = store
	n.pairs.introduce, n.pairs.startOf = n.ring.Introduce, n.ring.Incarnation
	n.mesh.Replicate(replicaRing, n.ring)
	for _, method := range ipam.Methods() {
		n.mesh.Handle(method, func(ctx context.Context, from peer.ID, req []byte) ([]byte, error) {
			return n.ring.HandleCall(ctx, from, method, req)
		})
	}
	return nil
}

func (n *node) buildRouter() error {
	var err error
	n.router, err = router.New(router.Config{
		Host:    n.host,
		Drivers: n.drivers(),
		Log:     n.log,
		Undo:    n.state.file(fileUndo),
		Buried:  n.lingers.buried,
	})
	return err
}

// run works until ctx ends or the node is retired; what speaks with others ends earlier when the identity is stopped. The wire, the kernel's tunnels, routes and guard stay as they are when it returns.
func (n *node) run(ctx context.Context) error {
	defer close(n.ended)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.retired, cancel)()
	return supervise(ctx, n.log, task{"ring", n.ring.Run}, task{"live", func(ctx context.Context) error {
		return n.live(ctx,
			task{"router", n.router.Run},
			task{"wire", n.link.run},
			task{"mesh", n.mesh.Run},
			task{"lingers", n.runLingers},
			task{"renumber", n.runRenumber},
			task{"circuits", func(ctx context.Context) error {
				return n.circuits.Serve(ctx, n.link.Accept, circuit.Handlers{Circuit: n.serveCircuit, Join: n.serveJoin})
			}},
			task{"pairs", n.pairs.run},
			task{"glue", n.runGlue},
			task{"reach", n.runReach},
			task{"clients", n.runClients},
			task{"silence", n.watchSilence},
			task{"reclaim", n.reclaim},
			task{"segments", n.runSegments},
		)
	}})
}

// serveCircuit gives a member's stream to whom it is for.
func (n *node) serveCircuit(ctx context.Context, conn *circuit.Conn) {
	if err := n.mesh.Roster().Add(conn.Certificate); err != nil {
		n.log.Warn("certificate of a member not kept", "peer", conn.Peer, "err", err)
		return
	}
	if conn.Via.IsZero() && n.reach.cameIn(time.Now()) {
		n.nudge()
	}
	if conn.Kind != streamPair {
		n.mesh.ServeStream(ctx, conn.Peer, conn.Kind, conn)
		return
	}
	if err := n.pairs.serve(ctx, conn); err != nil {
		n.log.Debug("no pair secret agreed", "peer", conn.Peer, "err", err)
	}
}

// publicKey finds the key of a member.
func (n *node) publicKey(id peer.ID) (ed25519.PublicKey, bool) {
	c, ok := n.mesh.Roster().Certificate(id)
	if !ok {
		return nil, false
	}
	return c.Public(), true
}

// serveJoin gives a machine that wants to join to the sponsor. That it got here tells that this node can be dialled.
func (n *node) serveJoin(ctx context.Context, conn *tls.Conn, from netip.AddrPort, known func() bool) {
	if n.reach.cameIn(time.Now()) {
		n.nudge()
	}
	n.sponsor.Serve(ctx, conn, from, known)
}

// endpointsOf lists where a member may be dialled: by its own word, and where the wire hears it.
func (n *node) endpointsOf(id peer.ID) []netip.AddrPort {
	info, _ := n.mesh.Peer(id)
	all := dataStreams(info, n.toldEndpoints(id))
	if at := n.heardAt(id); at.IsValid() && !slices.Contains(all, at) && !slices.Contains(info.Reflected, at) {
		all = append(all, at)
	}
	return all
}

// packetEndpoints lists where a member may be sent datagrams: where it may be dialled, and outside addresses of its NAT.
func (n *node) packetEndpoints(id peer.ID) []netip.AddrPort {
	info, _ := n.mesh.Peer(id)
	all := n.toldEndpoints(id)
	for _, ap := range info.Reflected {
		if dialable(ap, n.pools) && !slices.Contains(all, ap) {
			all = append(all, ap)
		}
	}
	return all
}

// toldEndpoints are a member's own word, and where it was when this node joined.
func (n *node) toldEndpoints(id peer.ID) []netip.AddrPort {
	info, _ := n.mesh.Peer(id)
	own := n.ownAddresses() // a stranger's network may have the same private addresses: there would be this node itself
	all := slices.DeleteFunc(info.Endpoints, func(ap netip.AddrPort) bool { return !dialable(ap, n.pools) || isOwn(own, ap.Addr()) })
	if id == n.member.sponsor && !slices.Contains(all, n.member.endpoint) {
		all = append(all, n.member.endpoint)
	}
	return all
}

// buildSponsor lets this node take part in the joins of others.
func (n *node) buildSponsor() error {
	var err error
	n.sponsor, err = join.NewSponsor(join.SponsorConfig{
		Key:     n.key,
		Cluster: n.member.cluster,
		Roster:  sponsorRoster{n.mesh.Roster(), n},
		Store:   n.state,
		Call:    n.mesh.Call,
		RootKey: func() identity.Key { return n.root },
		Alive:   n.alive,
		Removed: n.whyNoMember,
		Records: func() []byte { return n.mesh.Snapshot("records") },
		Ring:    n.ring.Snapshot,
		Build:   n.cfg.Build,
		Log:     n.log,
	})
	if err != nil {
		return err
	}
	for method, handle := range n.sponsor.Handlers() {
		n.mesh.Handle(method, handle)
	}
	return nil
}

// alive is membership's opinion.
func (n *node) alive(id peer.ID) bool {
	info, ok := n.mesh.Peer(id)
	return ok && info.State == peer.Alive
}
