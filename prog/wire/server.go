package wire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"weft/mesh/lobby"
	"weft/mesh/peer"
	"weft/router"
	"weft/router/sleeve"
)

// Limits of the control socket.
const (
	backlog      = 16
	maxGreeters  = 4               // connections that have not said hello
	greetTimeout = 5 * time.Second // to say it
	maxPassing   = 64              // accepted connections on their way to weftd
)

// engine is what the wire runs; a sleeve.Engine.
type engine interface {
	Run(ctx context.Context) error
	SetIdentity(sleeve.Identity) error
	SetPeers([]sleeve.Peer) error
	SetTunnels([]router.Tunnel) error
	SetLocal([]netip.Prefix) error
	SetUDP([]*net.UDPConn) error
	SetTUN([]*os.File, sleeve.Offload) error
	Send(to peer.ID, b []byte) error
	SendForeign(run []byte, size int, to netip.AddrPort) error
	SetRelay(on bool)
	SetSparse(s sleeve.Sparse)
	AddStream(conn net.Conn)
	Punch(to peer.ID, endpoints []netip.AddrPort) error
	Stats() sleeve.Stats
}

var _ engine = (*sleeve.Engine)(nil)

// server is the process's side of the control socket.
type server struct {
	log     *slog.Logger
	build   string
	owner   uint32 // besides root, the uid that may attach
	started time.Time
	engine  engine
	in      *queue // for weftd; outlives each one
	wanted  wanted
	devices *userDevices
	streams dataStreams

	stop  context.CancelFunc // ends run
	tasks sync.WaitGroup     // connections and TCP listeners

	mu       sync.Mutex
	ctl      *conn // attached controller
	conns    map[*conn]struct{}
	greeters int // of conns that said no hello
	ending   bool

	knocking *lobby.Lobby[netip.Prefix] // new TCP connections
	callers  callers

	attached, refused, failed, passed, closed, malformed atomic.Uint64
}

func newServer(log *slog.Logger, build string, owner uint32) (*server, error) {
	s := &server{
		log: log, build: build, owner: owner, started: time.Now(), in: newQueue(), conns: map[*conn]struct{}{},
		knocking: lobby.New[netip.Prefix](lobby.Limits{All: maxKnocking, Each: maxKnockingFrom, Patience: knockPatience}),
	}
	s.devices = newUserDevices(log)
	e, err := sleeve.New(sleeve.Config{
		Log:     log,
		Foreign: s.devices.port.offer,
		Dial:    s.streams.dial,
		Deliver: func(from peer.ID, b []byte) { s.in.push(Datagram{from, b}) },
	})
	if err != nil {
		return nil, fmt.Errorf("make sleeve: %w", err)
	}
	s.engine = e
	s.devices.port.send = e.SendForeign
	s.wanted.init(s)
	return s, nil
}

// run serves ln until ctx ends, a controller asks to stop or the engine fails. Connections of controllers
// are closed after everything else, as the sign that all descriptors are free.
func (s *server) run(ctx context.Context, ln *net.UnixListener) error {
	ctx, s.stop = context.WithCancel(ctx)
	defer s.stop()
	var base sync.WaitGroup
	var engineErr error
	base.Go(func() {
		defer s.stop()
		engineErr = s.engine.Run(ctx)
	})
	base.Go(func() {
		defer s.stop()
		s.listen(ctx, ln)
	})
	<-ctx.Done()
	ln.Close()
	s.wanted.close()
	s.devices.close()
	base.Wait()
	s.mu.Lock()
	s.ending = true
	for c := range s.conns {
		c.close()
	}
	s.mu.Unlock()
	s.tasks.Wait()
	if engineErr != nil && !errors.Is(engineErr, context.Canceled) {
		return fmt.Errorf("run sleeve: %w", engineErr)
	}
	return nil
}

// listen accepts on the control socket.
func (s *server) listen(ctx context.Context, ln *net.UnixListener) {
	for {
		u, err := ln.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			s.log.Warn("accept on control socket", "err", err)
			if !pause(ctx, acceptPause) {
				return
			}
			continue
		}
		if err := s.admit(u); err != nil {
			s.refused.Add(1)
			s.log.Warn("refused a controller", "err", err)
			u.Close()
		}
	}
}

// admit checks who connected and serves the connection.
func (s *server) admit(u *net.UnixConn) error {
	pid, uid, err := credentials(u)
	if err != nil {
		return err
	}
	if uid != 0 && uid != s.owner {
		return fmt.Errorf("process %d of user %d may not steer the wire", pid, uid)
	}
	c := newConn(u, newQueue())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return net.ErrClosed
	}
	if s.greeters >= maxGreeters {
		return errors.New("too many connections that said no hello")
	}
	s.greeters++
	s.conns[c] = struct{}{}
	s.tasks.Go(func() { s.serve(c, pid) })
	return nil
}

// serve answers one controller until its connection ends.
func (s *server) serve(c *conn, pid int) {
	defer c.release()
	defer s.forget(c)
	defer c.close()
	err := s.greet(c, pid)
	s.greeted()
	if err != nil {
		s.refused.Add(1)
		s.log.Warn("refused a controller", "pid", pid, "err", err)
		return
	}
	for {
		f, err := c.next()
		if err != nil {
			if errors.Is(err, errFrame) {
				s.malformed.Add(1)
			}
			s.detach(c, pid, err)
			return
		}
		s.answer(c, f)
	}
}

// greeted ends a connection's time as one that said no hello.
func (s *server) greeted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.greeters--
}

func (s *server) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// greet reads hello and makes c the controller.
func (s *server) greet(c *conn, pid int) error {
	if err := c.unix.SetReadDeadline(time.Now().Add(greetTimeout)); err != nil {
		return err
	}
	f, err := c.next()
	if err != nil {
		return fmt.Errorf("read hello: %w", err)
	}
	defer closeFDs(f.fds)
	if f.kind != kindHello {
		return fmt.Errorf("%w: kind %d before hello", errFrame, f.kind)
	}
	if f.version.Major() != protocol.Major() {
		return s.makeRoom(c, f)
	}
	build, err := parseHelloRequest(f.body)
	if err != nil {
		return fmt.Errorf("read hello: %w", err)
	}
	if err := c.unix.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	c.limit, c.bulk = maxBody, s.in

	s.mu.Lock()
	old := s.ctl
	s.ctl = c
	s.mu.Unlock()
	if old != nil {
		_ = old.post(kindDisplaced, 0, nil)
		old.finish()
	}
	s.attached.Add(1)
	// Waits for a request of the old one that is still being done; there are no others after it.
	if err := c.post(kindHello, f.id, appendHello(nil, s.hello())); err != nil {
		return err
	}
	s.log.Info("controller attached", "pid", pid, "build", build)
	s.tasks.Go(func() { _ = c.write() })
	return nil
}

// makeRoom serves a controller of another major version, which may only learn who we are and ask us to stop.
func (s *server) makeRoom(c *conn, f frame) error {
	other := f.version
	body := appendHello(nil, Hello{Version: s.build, PID: os.Getpid(), Started: s.started})
	if err := c.post(kindHello, f.id, body); err != nil {
		return err
	}
	s.tasks.Go(func() { _ = c.write() })
	f, err := c.next()
	if err != nil {
		return fmt.Errorf("controller speaks protocol %s, this wire %s: %w", other, protocol, err)
	}
	closeFDs(f.fds)
	if f.kind != kindStop {
		return fmt.Errorf("%w: controller speaks protocol %s, this wire %s", errFrame, other, protocol)
	}
	s.log.Info("stopping for a controller of another version", "protocol", other.String())
	s.stop()
	return nil
}

// detach notes that c ended. The data plane goes on.
func (s *server) detach(c *conn, pid int, err error) {
	s.mu.Lock()
	current := s.ctl == c
	if current {
		s.ctl = nil
	}
	s.mu.Unlock()
	if current {
		s.log.Info("controller detached", "pid", pid, "err", err)
	}
}

// controller is the one attached now, or nil.
func (s *server) controller() *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ctl
}

func (s *server) hello() Hello {
	h := Hello{Version: s.build, PID: os.Getpid(), Started: s.started}
	s.wanted.describe(&h)
	for _, p := range s.engine.Stats().Peers {
		h.Peers = append(h.Peers, p.Link())
	}
	return h
}

// answer does what one frame asks for.
func (s *server) answer(c *conn, f frame) {
	defer func() { closeFDs(f.fds) }()
	var body []byte
	var fds []int
	var err error
	switch f.kind {
	case kindDatagram:
		s.send(f.body)
		return
	case kindStop:
		s.log.Info("stopping on request")
		s.stop()
		return
	case kindStats:
		body = appendStats(nil, s.stats())
	case kindDeviceOpen, kindDeviceShut, kindDeviceSet, kindDeviceGet, kindDeviceLend:
		taken := f.fds
		f.fds = nil
		if s.controller() != c {
			closeFDs(taken)
			err = errDisplaced
			break
		}
		body, fds, err = s.devices.answer(f.kind, f.body, taken)
	case kindFiles:
		var h Hello
		if fds, err = s.wanted.copies(&h); err == nil {
			body = appendHello(nil, h)
		}
	case kindPunch:
		var p punch
		if p, err = parsePunch(f.body); err == nil {
			err = s.engine.Punch(p.to, p.at)
		}
	case kindIdentity, kindPeers, kindTunnels, kindLocal, kindRelay, kindSparse, kindUDP, kindTCP, kindTUN:
		taken := f.fds
		f.fds = nil
		err = s.wanted.set(c, f.kind, f.body, taken)
	default:
		err = fmt.Errorf("%w: kind %d", ErrUnsupported, f.kind)
	}
	if f.id == 0 {
		closeFDs(fds)
		return
	}
	k := kindReply
	if err != nil {
		k, body = kindError, appendFailure(nil, failureOf(err))
		s.log.Warn("request of the controller failed", "kind", int(f.kind), "err", err)
	}
	if err := c.post(k, f.id, body, fds...); err != nil {
		c.close() // a controller that reads no answers is of no use
	}
}

func (s *server) send(body []byte) {
	d, err := parseDatagram(body)
	if err == nil {
		err = s.engine.Send(d.Peer, d.Data)
	}
	if err != nil {
		s.failed.Add(1)
	}
}

func (s *server) stats() Stats {
	return Stats{Stats: s.engine.Stats(), Counters: Counters{
		Attached: s.attached.Load(), Refused: s.refused.Load(), Malformed: s.malformed.Load(),
		DatagramsDropped: s.in.lost(), DatagramsFailed: s.failed.Load(),
		AcceptedPassed: s.passed.Load(), AcceptedClosed: s.closed.Load(),
	}}
}
