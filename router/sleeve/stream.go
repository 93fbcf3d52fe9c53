package sleeve

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"weft/mesh/path"
)

// Limits of streams.
const (
	maxOpen      = 256                    // streams at a time
	maxUnproven  = 64                     // of them, that brought nothing from a peer yet
	maxOwn       = 8                      // of them, that are one peer's
	proveWithin  = 10 * time.Second       // the first datagram of a peer
	streamIdle   = 3 * time.Minute        // without any from one
	streamWrite  = 10 * time.Second       // for what waits to be taken by the connection
	streamQueue  = 256 << 10              // bytes that wait
	streamRead   = 2 * (maxPacket + 1024) // bytes of one reader's buffer
	streamHeader = 2
)

// streams are the connections that carry datagrams, by the address of the other end. Each datagram stands behind its
// length, two bytes. What is in it is sealed and authenticated as it is on UDP: the connection itself is trusted with
// nothing.
type streams struct {
	mu    sync.RWMutex
	open  map[netip.AddrPort]*stream
	dials int
	port  uint16 // of the newest that we opened; 0: none
}

func (s *streams) find(to netip.AddrPort) *stream {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.open[to]
}

// stream is a connection that carries datagrams. Whoever sends appends to the queue; its writer takes all that waits.
type stream struct {
	conn net.Conn
	at   netip.AddrPort
	made int64        // on the engine's clock
	last atomic.Int64 // datagram of a peer; 0: none yet
	of   *remote      // who brought the first one; guarded by the table's lock

	mu     sync.Mutex // guards what follows
	queue  []byte
	closed bool
	wake   chan struct{}
}

// put queues datagrams of size bytes each, back to back. It never waits: what finds no room is refused.
func (s *stream) put(b []byte, size int) (refused int) {
	s.mu.Lock()
	for len(b) > 0 {
		d := b[:min(size, len(b))]
		b = b[len(d):]
		if s.closed || len(s.queue)+streamHeader+len(d) > streamQueue {
			refused++
			continue
		}
		s.queue = append(binary.BigEndian.AppendUint16(s.queue, uint16(len(d))), d...)
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return refused
}

// gone reports whether nothing can be sent any more.
func (s *stream) gone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *stream) close() {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	if first {
		s.conn.Close()
	}
}

// write sends what waits until the connection ends.
func (s *stream) write(ctx context.Context) {
	defer s.close()
	var batch []byte
	for {
		s.mu.Lock()
		batch, s.queue = s.queue, batch[:0]
		closed := s.closed
		s.mu.Unlock()
		if closed {
			return
		}
		if len(batch) == 0 {
			select {
			case <-s.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		if s.conn.SetWriteDeadline(time.Now().Add(streamWrite)) != nil {
			return
		}
		if _, err := s.conn.Write(batch); err != nil {
			return
		}
	}
}

// AddStream takes over a connection that a peer opened to send datagrams through. Who it is shows in what comes.
func (e *Engine) AddStream(conn net.Conn) {
	a, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		conn.Close()
		return
	}
	at := a.AddrPort()
	e.addStream(conn, netip.AddrPortFrom(at.Addr().Unmap(), at.Port()))
}

// addStream starts the workers of a connection; false: there is no room, and it is closed.
func (e *Engine) addStream(conn net.Conn, at netip.AddrPort) bool {
	s := &stream{conn: conn, at: at, made: e.now(), wake: make(chan struct{}, 1)}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.running || !e.streams.add(s) {
		conn.Close()
		return false
	}
	e.version.Add(1)
	ctx := e.ctx
	e.workers.Go(func() {
		var writer sync.WaitGroup
		ctx, cancel := context.WithCancel(ctx)
		writer.Go(func() { s.write(ctx) })
		stop := context.AfterFunc(ctx, s.close)
		newInbound(e).stream(s)
		s.close()
		cancel()
		stop()
		writer.Wait()
		e.streams.remove(s)
		e.version.Add(1)
		e.wake()
	})
	e.wake()
	return true
}

// add makes room: of the streams that brought nothing yet the oldest goes. Whoever fills the table with connections can
// keep one that speaks at once out for a moment, not for good.
func (s *streams) add(n *stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var oldest *stream
	unproven := 0
	for _, o := range s.open {
		if o.last.Load() != 0 {
			continue
		}
		unproven++
		if oldest == nil || o.made < oldest.made {
			oldest = o
		}
	}
	if unproven >= maxUnproven || len(s.open) >= maxOpen {
		if oldest == nil {
			return false
		}
		oldest.close()
		delete(s.open, oldest.at)
	}
	if former := s.open[n.at]; former != nil {
		former.close()
	}
	if s.open == nil {
		s.open = make(map[netip.AddrPort]*stream)
	}
	s.open[n.at] = n
	return true
}

// proven notes whose a stream is. Of more than one peer needs the one goes that has been idle for longest, or a single
// member could have them all.
func (s *streams) proven(n *stream, of *remote) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n.of = of
	var idlest *stream
	own := 0
	for _, o := range s.open {
		if o.of != of {
			continue
		}
		own++
		if idlest == nil || o.last.Load() < idlest.last.Load() {
			idlest = o
		}
	}
	if own > maxOwn {
		idlest.close()
		delete(s.open, idlest.at)
	}
}

func (s *streams) remove(n *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[n.at] == n {
		delete(s.open, n.at)
	}
}

// opened reports whether there is a stream for a path.
func (e *Engine) opened(p path.Path) bool { return p.TCP && e.streams.find(p.Endpoint) != nil }

// stream reads a connection until it ends.
func (in *inbound) stream(s *stream) {
	in.from, in.conn = path.Stream(s.at), s
	buf := make([]byte, streamRead)
	n := 0
	for {
		patience := proveWithin
		if s.last.Load() != 0 {
			patience = streamIdle
		}
		if s.conn.SetReadDeadline(time.Now().Add(patience)) != nil {
			return
		}
		got, err := s.conn.Read(buf[n:])
		if err != nil {
			return
		}
		n += got
		now := time.Now()
		if t := in.e.tun.Load(); t != in.tun {
			in.device(t)
		}
		rest := buf[:n]
		for {
			d, after, ok := cutStream(rest)
			if !ok {
				break
			}
			rest = after
			in.proving(s, d, now)
		}
		in.settle(now)
		n = copy(buf, rest)
		if last, at := s.last.Load(), in.e.at(now); last == 0 && at-s.made > int64(proveWithin) || last != 0 && at-last > int64(streamIdle) {
			return
		}
	}
}

// proving handles a datagram, and notes whose the stream is when it is the first one of a peer.
func (in *inbound) proving(s *stream, d []byte, now time.Time) {
	if s.last.Load() != 0 {
		in.datagram(d, 0, now)
		return
	}
	h, _ := parseHeader(d)
	entry, known := in.e.indexes.find(h.index)
	if in.datagram(d, 0, now); known && s.last.Load() != 0 {
		in.e.streams.proven(s, entry.remote)
	}
}

// cutStream takes the first datagram off what was read; false: it is not all there.
func cutStream(b []byte) (d, rest []byte, ok bool) {
	if len(b) < streamHeader {
		return nil, b, false
	}
	end := streamHeader + int(binary.BigEndian.Uint16(b))
	if len(b) < end {
		return nil, b, false
	}
	return b[streamHeader:end:end], b[end:], true
}
