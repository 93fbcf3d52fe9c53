package wire

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"weft/mesh/peer"
)

// errDisplaced answers requests of a controller that was displaced while they were on their way.
var errDisplaced = errors.New("another controller is attached")

// wanted is the desired state as the wire was told it, and the descriptors that it was given. Each message replaces the
// whole of its kind; one that says what is known already does nothing.
type wanted struct {
	s      *server
	ctx    context.Context // ends the TCP listeners' pauses
	cancel context.CancelFunc

	mu         sync.Mutex // one request at a time
	closed     bool
	generation uint64
	digests    map[kind][sha256.Size]byte // not the messages: some hold keys
	identity   peer.ID
	held       Held
	udp, tcp   []int // copies for a successor; the engine and the listeners have their own
	tun        []int
	doors      []*door
}

func (w *wanted) init(s *server) {
	w.s = s
	w.digests = map[kind][sha256.Size]byte{}
	w.ctx, w.cancel = context.WithCancel(context.Background())
}

// set does one request of controller c. It takes fds over.
func (w *wanted) set(c *conn, k kind, body []byte, fds []int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.s.controller() != c {
		closeFDs(fds)
		return errDisplaced
	}
	switch k {
	case kindUDP, kindTCP, kindTUN:
	default:
		closeFDs(fds)
		return w.state(k, body)
	}
	var changed bool
	var err error
	switch k {
	case kindUDP:
		changed, err = w.setUDP(fds)
	case kindTCP:
		changed, err = w.setTCP(fds)
	case kindTUN:
		changed, err = w.setTUN(body, fds)
	}
	if changed {
		w.generation++
	}
	return err
}

// state does the requests that carry no descriptors.
func (w *wanted) state(k kind, body []byte) error {
	digest := sha256.Sum256(body)
	if old, ok := w.digests[k]; ok && old == digest {
		return nil
	}
	var err error
	switch k {
	case kindIdentity:
		var id Identity
		if id, err = parseIdentity(body); err == nil {
			if err = w.s.engine.SetIdentity(id); err == nil {
				w.identity = id.ID
			}
		}
	case kindPeers:
		var peers []Peer
		if peers, err = parsePeers(body); err == nil {
			err = w.s.engine.SetPeers(peers)
		}
	case kindTunnels:
		tunnels, perr := parseTunnels(body)
		if err = perr; err == nil {
			err = w.s.engine.SetTunnels(tunnels)
		}
	case kindLocal:
		var local []netip.Prefix
		if local, err = parseLocal(body); err == nil {
			err = w.s.engine.SetLocal(local)
		}
	case kindRelay:
		var on bool
		if on, err = parseRelay(body); err == nil {
			w.s.engine.SetRelay(on)
		}
	case kindSparse:
		var s Sparse
		if s, err = parseSparse(body); err == nil {
			w.s.engine.SetSparse(s)
		}
	}
	if err != nil {
		delete(w.digests, k) // what the engine holds now is unknown: the next message must reach it
		return err
	}
	w.digests[k] = digest
	w.generation++
	return nil
}

// setUDP takes sockets, unless the same addresses are held already.
func (w *wanted) setUDP(fds []int) (changed bool, err error) {
	var conns []*net.UDPConn
	drop := func() {
		closeFDs(fds)
		for _, c := range conns {
			c.Close()
		}
	}
	var addrs []netip.AddrPort
	for _, fd := range fds {
		pc, err := fileOf(fd, "udp", net.FilePacketConn)
		if err != nil {
			drop()
			return false, err
		}
		c, ok := pc.(*net.UDPConn)
		if !ok {
			pc.Close()
			drop()
			return false, errors.New("take sockets: one is not UDP")
		}
		conns = append(conns, c)
		addrs = append(addrs, c.LocalAddr().(*net.UDPAddr).AddrPort())
	}
	if slices.Equal(addrs, w.held.UDP) {
		drop()
		return false, nil
	}
	if err := w.s.engine.SetUDP(conns); err != nil {
		drop()
		return false, fmt.Errorf("take sockets: %w", err)
	}
	closeFDs(w.udp)
	w.udp, w.held.UDP = fds, addrs
	return true, nil
}

// setTCP takes listeners, unless the same addresses are held already.
func (w *wanted) setTCP(fds []int) (changed bool, err error) {
	var doors []*door
	drop := func() {
		closeFDs(fds)
		for _, d := range doors {
			_ = d.Close()
		}
	}
	var addrs []netip.AddrPort
	for _, fd := range fds {
		ln, err := fileOf(fd, "tcp", net.FileListener)
		if err != nil {
			drop()
			return false, err
		}
		l, ok := ln.(*net.TCPListener)
		if !ok {
			ln.Close()
			drop()
			return false, errors.New("take listeners: one is not TCP")
		}
		d, err := newDoor(l)
		if err != nil {
			l.Close()
			drop()
			return false, err
		}
		doors = append(doors, d)
		addrs = append(addrs, l.Addr().(*net.TCPAddr).AddrPort())
	}
	if slices.Equal(addrs, w.held.TCP) {
		drop()
		return false, nil
	}
	w.closeListeners()
	w.tcp, w.held.TCP, w.doors = fds, addrs, doors
	for _, d := range doors {
		w.s.tasks.Go(func() { w.s.accept(w.ctx, d) })
	}
	return true, nil
}

// setTUN takes the queues of a device, unless those of the same device are held already.
func (w *wanted) setTUN(body []byte, fds []int) (changed bool, err error) {
	tun, err := parseTUN(body)
	if err != nil {
		closeFDs(fds)
		return false, err
	}
	if tun == w.held.TUN && len(fds) == len(w.tun) && !slices.ContainsFunc(w.tun, orphaned) {
		closeFDs(fds)
		return false, nil
	}
	var queues []*os.File
	drop := func() {
		closeFDs(fds)
		for _, q := range queues {
			_ = q.Close()
		}
	}
	for _, fd := range fds {
		var q *os.File
		own, err := duplicateFD(fd)
		if err == nil {
			q, err = pollable(own, tun.Name)
		}
		if err != nil {
			drop()
			return false, fmt.Errorf("take queues of %s: %w", tun.Name, err)
		}
		queues = append(queues, q)
	}
	if err := w.s.engine.SetTUN(queues, tun.Offload); err != nil {
		drop()
		return false, fmt.Errorf("take queues of %s: %w", tun.Name, err)
	}
	closeFDs(w.tun)
	w.tun, w.held.TUN, w.held.Queues = fds, tun, len(fds)
	return true, nil
}

// fileOf makes a socket of the net package from a duplicate of fd.
func fileOf[T any](fd int, name string, open func(*os.File) (T, error)) (T, error) {
	var none T
	own, err := duplicateFD(fd)
	if err != nil {
		return none, fmt.Errorf("duplicate %s socket: %w", name, err)
	}
	f := os.NewFile(uintptr(own), name)
	defer f.Close()   //nolint:errcheck // the socket has its own
	v, err := open(f) // duplicates once more
	if err != nil {
		return none, fmt.Errorf("take %s socket: %w", name, err)
	}
	return v, nil
}

// describe fills in what a new controller must know. A device that was deleted under us is not held.
func (w *wanted) describe(h *Hello) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fill(h)
}

func (w *wanted) fill(h *Hello) {
	h.Generation, h.Identity, h.Held = w.generation, w.identity, w.held
	if slices.ContainsFunc(w.tun, orphaned) {
		h.Held.TUN, h.Held.Queues = TUN{}, 0
	}
}

// copies duplicates all descriptors, in the order of h.Held, which it fills in.
func (w *wanted) copies(h *Hello) ([]int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fill(h)
	tun := w.tun[:h.Held.Queues]
	var out []int
	for _, fd := range slices.Concat(w.udp, w.tcp, tun) {
		own, err := duplicateFD(fd)
		if err != nil {
			closeFDs(out)
			return nil, fmt.Errorf("duplicate descriptors: %w", err)
		}
		out = append(out, own)
	}
	return out, nil
}

// close stops listening and gives up the copies of descriptors; no request is done afterwards.
func (w *wanted) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.cancel()
	w.closeListeners()
	closeFDs(w.udp)
	closeFDs(w.tun)
	w.udp, w.tun = nil, nil
}

func (w *wanted) closeListeners() {
	for _, d := range w.doors {
		_ = d.Close()
	}
	closeFDs(w.tcp)
	w.tcp, w.doors = nil, nil
}
