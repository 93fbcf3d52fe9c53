package sleeve

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/gaissmai/bart"

	"weft/crypto/noise"
	"weft/mesh/peer"
	"weft/router"
)

// The wanted state. Every setter checks all of it before it changes anything.

// SetIdentity tells who this node is. A changed ID or Cluster drops every session; a changed Noise key starts new
// handshakes beside the sessions; all else changes nothing that runs.
func (e *Engine) SetIdentity(id Identity) error {
	key, err := noise.NewKey(id.NoisePrivate)
	if err != nil {
		return fmt.Errorf("set identity: %w", err)
	}
	if id.ID.IsZero() {
		return errors.New("set identity: no id")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	old, had := e.identity, e.node.Load() != nil
	e.identity = id
	for c := e.counter.Load(); c < id.Counter; c = e.counter.Load() {
		e.counter.CompareAndSwap(c, id.Counter)
	}
	n := &node{
		local: noise.Local{Key: key, Cluster: id.Cluster}, epoch: id.Epoch,
		counter: func() uint64 { return e.counter.Add(1) }, jitter: rand.Float64, indexes: &e.indexes,
		ways: &ways{version: e.version.Load, carries: e.carries, streams: e.streamed, relays: func() []peer.ID { return *e.others.Load() }, open: e.opened},
	}
	e.node.Store(n)
	another := had && (old.ID != id.ID || old.Cluster != id.Cluster)
	rekey := had && old.NoisePrivate != id.NoisePrivate
	for _, r := range e.peers {
		r.mu.Lock()
		if another {
			r.link.close()
			r.link = link{owner: r, peer: r.link.peer, key: r.link.key, stale: true}
			r.publish()
		}
		r.link.node, r.link.second = n, id.ID.Compare(r.id) > 0
		if rekey && !another {
			r.link.rekey()
		}
		r.mu.Unlock()
	}
	if another {
		e.rebuild()
		e.night.called.Store(true) // the new links know nothing of it
	}
	e.wake()
	return nil
}

// SetPeers makes the peers exactly these. The sessions of a peer that is missing, or whose NoisePublic changed, end at
// once. A changed list of secrets is used from the next handshake on, and what is no longer in it never again; an empty
// list changes nothing.
func (e *Engine) SetPeers(peers []Peer) error {
	ids, keys := make(map[peer.ID]bool, len(peers)), make(map[[noise.KeySize]byte]bool, len(peers))
	for _, p := range peers {
		switch {
		case p.ID.IsZero():
			return errors.New("set peers: one has no id")
		case ids[p.ID] || keys[p.NoisePublic]:
			return fmt.Errorf("set peers: %s or its key is there twice", p.ID.Short())
		}
		ids[p.ID] = true
		if p.NoisePublic != [noise.KeySize]byte{} {
			keys[p.NoisePublic] = true
		}
	}
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return nil
	}
	before := e.peers
	e.peers = make(map[peer.ID]*remote, len(peers))
	e.keys = make(map[[noise.KeySize]byte]*remote, len(peers))
	for _, p := range peers {
		if p.ID == e.identity.ID {
			continue
		}
		r := before[p.ID]
		if p.NoisePublic == [noise.KeySize]byte{} {
			if r != nil && !keys[r.link.key] {
				e.peers[p.ID], e.keys[r.link.key] = r, r
			}
			continue
		}
		if r != nil && r.link.key != p.NoisePublic { // the key never changes, so it may be read without the lock
			r = nil
		}
		if r == nil {
			r = &remote{id: p.ID, engine: e}
			r.link = link{owner: r, node: e.node.Load(), key: p.NoisePublic, second: e.identity.ID.Compare(p.ID) > 0}
		}
		r.mu.Lock()
		r.link.configure(p, now)
		r.mu.Unlock()
		e.peers[p.ID], e.keys[p.NoisePublic] = r, r
	}
	for id, r := range before {
		if e.peers[id] != r {
			r.close()
			e.gone.take(&r.drops)
		}
	}
	e.enlist(peers)
	e.roll(peers, now)
	e.rebuild()
	e.wake()
	return nil
}

// maxOthers bounds the relays that are known beside a peer's own.
const maxOthers = 64

// enlist makes the snapshots of who is who; the lock is held.
func (e *Engine) enlist(peers []Peer) {
	all := members(maps.Clone(e.peers))
	e.members.Store(&all)
	others, seen := []peer.ID{}, peer.Set{}
	for _, p := range peers {
		for _, id := range p.Relays {
			if _, twice := seen[id]; !twice && len(others) < maxOthers {
				seen[id] = struct{}{}
				others = append(others, id)
			}
		}
	}
	e.others.Store(&others)
	e.version.Add(1)
}

// SetTunnels makes the inner routing exactly this: packets to a tunnel's blocks go to its peer, and packets from the
// peer must have a source in them. Endpoint is not used: SetPeers has the candidates. Tunnels of peers that SetPeers did
// not name yet wait for it.
func (e *Engine) SetTunnels(tunnels []router.Tunnel) error {
	owner, seen := make(map[netip.Prefix]peer.ID), make(map[peer.ID]bool)
	kept := make([]router.Tunnel, 0, len(tunnels))
	for _, t := range tunnels {
		if seen[t.Peer] {
			return fmt.Errorf("set tunnels: two for peer %s", t.Peer.Short())
		}
		if t.MTU < 0 || t.MTU > maxPacket {
			return fmt.Errorf("set tunnels: mtu %d of peer %s", t.MTU, t.Peer.Short())
		}
		seen[t.Peer] = true
		for _, b := range t.Blocks {
			if err := checkPrefix(b); err != nil {
				return fmt.Errorf("set tunnels: %w of peer %s", err, t.Peer.Short())
			}
			if other, ok := owner[b]; ok {
				return fmt.Errorf("set tunnels: %v is of %s and of %s", b, other.Short(), t.Peer.Short())
			}
			owner[b] = t.Peer
		}
		t.Blocks = slices.Clone(t.Blocks)
		kept = append(kept, t)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.tunnels = kept
	e.rebuild()
	return nil
}

func checkPrefix(p netip.Prefix) error {
	if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
		return fmt.Errorf("prefix %v", p)
	}
	return nil
}

// rebuild makes the routing snapshot anew; the lock is held.
func (e *Engine) rebuild() {
	next := new(routes)
	mtu := make(map[*remote]int, len(e.tunnels))
	for _, t := range e.tunnels {
		if r := e.peers[t.Peer]; r != nil {
			mtu[r] = t.MTU
			for _, b := range t.Blocks {
				next.Insert(b, r)
			}
		}
	}
	e.routes.Store(next)
	for _, r := range e.peers {
		r.mu.Lock()
		r.link.paths.WantMTU(mtu[r])
		r.mu.Unlock()
	}
}

// SetLocal says which inner destinations are accepted from peers: the blocks of this node and its host addresses.
func (e *Engine) SetLocal(prefixes []netip.Prefix) error {
	next := new(bart.Lite)
	for _, p := range prefixes {
		if err := checkPrefix(p); err != nil {
			return fmt.Errorf("set local: %w", err)
		}
		next.Insert(p)
	}
	e.local.Store(next)
	return nil
}

// SetUDP replaces the sockets, at most one for each address family; they should come from ListenUDP. The engine owns
// them from now on, unless it returns an error.
func (e *Engine) SetUDP(conns []*net.UDPConn) error {
	next := &sockets{}
	for _, c := range conns {
		s := newSocket(c)
		slot := &next.v4
		if s.v6 {
			slot = &next.v6
		}
		if *slot != nil {
			return errors.New("set sockets: two of one address family")
		}
		*slot = s
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		e.closeSockets(next)
		return nil
	}
	e.startSockets(next)
	e.closeSockets(e.sockets.Swap(next))
	e.wake()
	return nil
}

// SetTUN replaces the queues of the TUN device; none means no device. The engine owns the files from now on, unless it
// returns an error; each must be non-blocking (made by os.NewFile from a descriptor that is).
func (e *Engine) SetTUN(queues []*os.File, offload Offload) error {
	for _, f := range queues {
		if err := f.SetReadDeadline(time.Time{}); err != nil {
			return fmt.Errorf("set TUN: a queue that cannot be polled could never be given back: %w", err)
		}
	}
	var next *tunnel
	if len(queues) > 0 {
		next = &tunnel{queues: slices.Clone(queues), offload: offload}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		e.closeTUN(next)
		return nil
	}
	e.startTUN(next)
	e.closeTUN(e.tun.Swap(next))
	return nil
}
