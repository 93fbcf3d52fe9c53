package meshtest

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"weft/mesh/peer"
)

// Conn is one end of a stream. What is written arrives in order, after the network's delay, and not during a cut.
type Conn struct {
	port *Port
	out  *way // to the other end
	in   *way // from it
	once sync.Once
}

var _ net.Conn = (*Conn)(nil)

func newConns(a, b *Port) (near, far *Conn) {
	there, back := newWay(a, b), newWay(b, a)
	return &Conn{port: a, out: there, in: back}, &Conn{port: b, out: back, in: there}
}

func (c *Conn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *Conn) Write(b []byte) (int, error) { return c.out.write(b) }

// Close ends both directions; the other end reads what was written before.
func (c *Conn) Close() error {
	c.once.Do(func() {
		c.port.forget(c)
		c.out.finish()
		c.in.abandon()
	})
	return nil
}

// LocalAddr is the NodeID of this end.
func (c *Conn) LocalAddr() net.Addr { return addr(c.out.from.id) }

// RemoteAddr is the NodeID of the other end.
func (c *Conn) RemoteAddr() net.Addr { return addr(c.out.to.id) }

// SetDeadline is SetWriteDeadline and SetReadDeadline.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetWriteDeadline(t), c.SetReadDeadline(t))
}

// SetReadDeadline ends reads that wait at t.
func (c *Conn) SetReadDeadline(t time.Time) error { c.in.setReadDeadline(t); return nil }

// SetWriteDeadline only refuses writes after t: a write never waits.
func (c *Conn) SetWriteDeadline(t time.Time) error { c.out.setWriteDeadline(t); return nil }

type addr peer.ID

func (addr) Network() string  { return "meshtest" }
func (a addr) String() string { return peer.ID(a).Short() }

// way is one direction of a stream.
type way struct {
	from, to *Port

	mu            sync.Mutex // guards all below
	ready         sync.Cond
	flight        [][]byte // written, not arrived; nil stands for the end
	moving        bool     // a timer will deliver
	arrived       []byte
	ended         bool // the writer closed, and that has arrived
	closedW       bool // the writer closed
	closedR       bool // the reader closed
	readDeadline  time.Time
	writeDeadline time.Time
	alarm         *time.Timer
}

func newWay(from, to *Port) *way {
	w := &way{from: from, to: to}
	w.ready.L = &w.mu
	return w
}

func (w *way) write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.closedW || w.closedR:
		return 0, io.ErrClosedPipe
	case !w.writeDeadline.IsZero() && !time.Now().Before(w.writeDeadline):
		return 0, os.ErrDeadlineExceeded
	case len(b) == 0:
		return 0, nil
	}
	w.launch(append([]byte(nil), b...))
	return len(b), nil
}

func (w *way) finish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closedW {
		w.closedW = true
		w.launch(nil)
	}
}

// launch is called with the lock held.
func (w *way) launch(b []byte) {
	w.flight = append(w.flight, b)
	if !w.moving {
		w.moving = true
		time.AfterFunc(w.next(), w.land)
	}
}

// next is when what is in flight arrives.
func (w *way) next() time.Duration {
	n := w.from.net
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.delay()
	if n.lose() {
		d += retransmit
	}
	return d
}

// land delivers all that is in flight, later when there is a cut.
func (w *way) land() {
	n := w.from.net
	n.mu.Lock()
	cut := n.isCut(w.from.id, w.to.id)
	n.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closedR || n.ctx.Err() != nil {
		w.moving, w.flight, w.ended = false, nil, true
		w.ready.Broadcast()
		return
	}
	if cut {
		time.AfterFunc(retransmit, w.land)
		return
	}
	for _, b := range w.flight {
		if b == nil {
			w.ended = true
		}
		w.arrived = append(w.arrived, b...)
	}
	w.moving, w.flight = false, nil
	w.ready.Broadcast()
}

func (w *way) read(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		switch {
		case w.closedR:
			return 0, io.ErrClosedPipe
		case !w.readDeadline.IsZero() && !time.Now().Before(w.readDeadline):
			return 0, os.ErrDeadlineExceeded
		case len(w.arrived) > 0:
			n := copy(b, w.arrived)
			w.arrived = w.arrived[n:]
			return n, nil
		case w.ended:
			return 0, io.EOF
		}
		w.ready.Wait()
	}
}

func (w *way) abandon() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closedR = true
	if w.alarm != nil {
		w.alarm.Stop()
	}
	w.ready.Broadcast()
}

func (w *way) setReadDeadline(t time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.readDeadline = t
	if w.alarm != nil {
		w.alarm.Stop()
	}
	if !t.IsZero() {
		w.alarm = time.AfterFunc(time.Until(t), func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.ready.Broadcast()
		})
	}
	w.ready.Broadcast()
}

func (w *way) setWriteDeadline(t time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeDeadline = t
}
