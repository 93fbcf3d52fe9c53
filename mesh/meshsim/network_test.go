package meshsim_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

// What messages cost beyond their own bytes.
const (
	datagramCost = 28 + 32   // IP and UDP, the session's header and tag
	streamCost   = 6_100     // TCP and TLS 1.3 with X25519MLKEM768 and both certificates, both directions; see cost_test.go
	segmentSize  = 1400      // bytes of a stream in one packet
	segmentCost  = 52 + 22   // IP, TCP with its options, a TLS record
	streamFrames = 14        // packets of opening and closing
	envelopeSize = 1 + 2*16  // relayed: kind, source, destination
	relayed      = byte(255) // the kind of a datagram in an envelope; the mesh has none of that number
)

// homesEach is how many relays a node that cannot be dialled is at home at.
const homesEach = 3

var errNoPath = errors.New("no path: neither end can be dialled, and nothing relays between them")

// Load counts what a node sends, in packets and bytes on the cable.
type Load struct {
	Packets, Bytes       uint64 // all
	Datagrams            uint64 // of its own
	Relayed              uint64 // datagrams passed on for others
	RelayedBytes         uint64
	Streams, StreamBytes uint64 // opened by it; bytes written by it
}

func (l Load) minus(o Load) Load {
	return Load{
		l.Packets - o.Packets, l.Bytes - o.Bytes, l.Datagrams - o.Datagrams, l.Relayed - o.Relayed,
		l.RelayedBytes - o.RelayedBytes, l.Streams - o.Streams, l.StreamBytes - o.StreamBytes,
	}
}

func (l Load) plus(o Load) Load {
	return Load{
		l.Packets + o.Packets, l.Bytes + o.Bytes, l.Datagrams + o.Datagrams, l.Relayed + o.Relayed,
		l.RelayedBytes + o.RelayedBytes, l.Streams + o.Streams, l.StreamBytes + o.StreamBytes,
	}
}

// meter is a Load that many goroutines count in.
type meter struct {
	packets, bytes, datagrams, relayed, relayedBytes, streams, streamBytes atomic.Uint64
}

func (m *meter) packet(size int) {
	m.packets.Add(1)
	m.bytes.Add(uint64(size + datagramCost))
}

// segments counts bytes of a stream.
func (m *meter) segments(size int) {
	n := (size + segmentSize - 1) / segmentSize
	m.packets.Add(uint64(n))
	m.bytes.Add(uint64(size + n*segmentCost))
	m.streamBytes.Add(uint64(size))
}

func (m *meter) load() Load {
	return Load{
		m.packets.Load(), m.bytes.Load(), m.datagrams.Load(), m.relayed.Load(), m.relayedBytes.Load(),
		m.streams.Load(), m.streamBytes.Load(),
	}
}

// outage is when a node went down or a link was cut: for a while the others still send that way.
type outage struct {
	parted func(a, b *Node) bool // nil: nothing is cut
	since  time.Time
}

// relayFor is the node by which two reach each other that cannot be dialled: the first of their homes that seemed to work
// FailOver ago, else any other that can be dialled. It answers nil when there is none.
func (w *World) relayFor(a, b *Node) *Node {
	if w.Spec.NoRelay {
		return nil
	}
	for i := range homesEach {
		for _, n := range []*Node{a, b} {
			if homes := *n.homes.Load(); i < len(homes) && w.carries(a, homes[i], b) {
				return homes[i]
			}
		}
	}
	// Not the same for all, also where one part of them is cut off: hence not the next one either.
	relays := *w.relays.Load()
	for _, step := range []int{1 + a.Index + b.Index, 1} { // the first may pass by some
		for i := range relays {
			if r := relays[(a.Index*31+b.Index+i*step)%len(relays)]; w.carries(a, r, b) {
				return r
			}
		}
	}
	return nil
}

func (w *World) carries(a, r, b *Node) bool {
	return w.seemsUp(r) && !w.seemsParted(a, r) && !w.seemsParted(r, b)
}

func (w *World) seemsUp(n *Node) bool {
	if n.up.Load() {
		return true
	}
	return time.Since(time.Unix(0, n.downAt.Load())) < FailOver
}

// seemsParted reports whether nothing came through from a to b, in either direction, since longer than FailOver.
func (w *World) seemsParted(a, b *Node) bool {
	now := w.cuts.Load()
	if time.Since(now.since) < FailOver {
		now = w.before.Load()
	}
	return now.parted != nil && (now.parted(a, b) || now.parted(b, a))
}

// Parted reports whether the network carries nothing from a to b now.
func (w *World) Parted(a, b *Node) bool {
	now := w.cuts.Load()
	return now.parted != nil && now.parted(a, b)
}

// packets is the wire as a node's mesh sees it.
type packets struct{ n *Node }

func (p packets) Send(to peer.ID, b []byte) error {
	a, z := p.n, p.n.world.byID(to)
	if z == nil || !a.knows(to) {
		return errNoPath
	}
	if wait := a.session(z); wait > 0 { // the wire keeps the first packets until the session is open
		b = slices.Clone(b)
		port := a.port.Load()
		time.AfterFunc(wait, func() { _ = p.send(port, z, b) })
		return nil
	}
	return p.send(a.port.Load(), z, b)
}

func (p packets) send(port *meshtest.Port, z *Node, b []byte) error {
	a, to := p.n, z.ID
	if a.dialable || z.dialable {
		a.meter.datagrams.Add(1)
		a.meter.packet(len(b))
		return port.Send(to, b)
	}
	r := a.world.relayFor(a, z)
	if r == nil {
		return errNoPath
	}
	e := make([]byte, 0, envelopeSize+len(b))
	e = append(append(e, relayed), a.ID[:]...)
	e = append(append(e, to[:]...), b...)
	a.meter.datagrams.Add(1)
	a.meter.packet(len(e))
	return port.Send(r.ID, e)
}

// Receive passes on what is for others.
func (p packets) Receive(ctx context.Context) (peer.ID, []byte, error) {
	port := p.n.port.Load()
	for {
		from, b, err := port.Receive(ctx)
		if err != nil {
			return from, b, err
		}
		if len(b) < envelopeSize || b[0] != relayed {
			if p.n.knows(from) {
				return from, b, nil
			}
			continue
		}
		var to peer.ID
		copy(from[:], b[1:])
		copy(to[:], b[1+len(from):])
		if to == p.n.ID {
			if p.n.knows(from) {
				return from, b[envelopeSize:], nil
			}
			continue
		}
		p.n.meter.packet(len(b))
		p.n.meter.relayed.Add(1)
		p.n.meter.relayedBytes.Add(uint64(len(b)))
		if err := port.Send(to, b); err != nil {
			return peer.ID{}, nil, err
		}
	}
}

// streams opens circuits. One to a node that cannot be dialled is opened from there, when a home has called it.
type streams struct{ n *Node }

func (s streams) Dial(ctx context.Context, to peer.ID, kind byte) (net.Conn, error) {
	a, z := s.n, s.n.world.byID(to)
	if z == nil {
		return nil, errNoPath
	}
	if !z.dialable {
		d := 2 * a.world.Spec.Conditions.Delay
		if !a.dialable {
			if a.world.relayFor(a, z) == nil {
				return nil, errNoPath
			}
			d *= 2
		}
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	c, err := a.port.Load().Dial(ctx, to, kind)
	if err != nil {
		return nil, err
	}
	a.meter.streams.Add(1)
	a.meter.packets.Add(streamFrames / 2)
	a.meter.bytes.Add(streamCost / 2)
	z.meter.packets.Add(streamFrames / 2)
	z.meter.bytes.Add(streamCost / 2)
	return counted{c, &a.meter}, nil
}

// counted counts what is written to a stream.
type counted struct {
	net.Conn
	meter *meter
}

func (c counted) Write(b []byte) (int, error) {
	c.meter.segments(len(b))
	return c.Conn.Write(b)
}

// chooseHomes gives a node that cannot be dialled its relays.
func chooseHomes(r *rand.Rand, n *Node, dialable []*Node) {
	var homes []*Node
	for _, i := range r.Perm(len(dialable))[:min(homesEach, len(dialable))] {
		homes = append(homes, dialable[i])
	}
	n.homes.Store(&homes)
}
