package wire

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"time"
)

// requestTimeout is how long a wire may take for one request, whatever the caller's patience.
const requestTimeout = 10 * time.Second

// lostPatience is how long Done waits, after the connection broke, for the process to be gone.
const lostPatience = 500 * time.Millisecond

// reply is what came back for a request.
type reply struct {
	kind kind
	body []byte
	fds  []int
	head header
}

func newClient(o Options, socket string, u *net.UnixConn, pid int) *Client {
	c := &Client{
		o: o, log: o.Log, socket: socket, pid: pid, accepted: make(chan *os.File, maxAccepted), in: newQueue(), out: newQueue(),
		ended: make(chan struct{}), done: make(chan struct{}), waiting: map[uint32]chan<- reply{}, desired: map[kind][]byte{},
	}
	c.conn = newConn(u, c.out)
	c.conn.limit = maxBody
	c.tasks.Go(func() { _ = c.conn.write() })
	c.tasks.Go(c.read)
	return c
}

// read takes in what the wire sends until the connection ends.
func (c *Client) read() {
	err := c.dispatch()
	c.conn.close()
	c.conn.release()
	c.mu.Lock()
	c.err = c.cause
	if c.err == nil && c.stopping {
		c.err = ErrStopped
	} else if c.err == nil {
		c.err = fmt.Errorf("%w: %w", ErrLost, err)
	}
	for _, w := range c.waiting {
		close(w)
	}
	c.waiting = nil
	lost, patience := c.cause == nil, lostPatience
	if c.stopping {
		patience = exitPatience
	}
	c.mu.Unlock()
	close(c.ended)
	if lost { // else it lives on; a process that has ended holds no socket and no queue any more
		c.exit, _ = reap(c.pid, patience)
	}
	close(c.done)
	for {
		select {
		case f := <-c.accepted:
			_ = f.Close()
		default:
			return
		}
	}
}

func (c *Client) dispatch() error {
	for {
		f, err := c.conn.next()
		if err != nil {
			return err
		}
		switch f.kind {
		case kindHello, kindReply, kindError:
			c.mu.Lock()
			w := c.waiting[f.id]
			delete(c.waiting, f.id)
			c.mu.Unlock()
			if w == nil {
				closeFDs(f.fds)
				continue
			}
			w <- reply{f.kind, slices.Clone(f.body), f.fds, f.header}
		case kindDatagram:
			closeFDs(f.fds)
			d, err := parseDatagram(f.body)
			if err != nil {
				return err
			}
			d.Data = slices.Clone(d.Data)
			c.in.push(d)
		case kindAccepted:
			for _, fd := range f.fds {
				c.offer(fd)
			}
		case kindDisplaced:
			closeFDs(f.fds)
			c.because(ErrDisplaced)
		default: // of a newer wire
			closeFDs(f.fds)
		}
	}
}

// offer keeps an accepted connection for Accept, if there is room.
func (c *Client) offer(fd int) {
	f := os.NewFile(uintptr(fd), "accepted")
	select {
	case c.accepted <- f:
	default:
		_ = f.Close()
		c.refused.Add(1)
	}
}

// because remembers why the connection is about to end.
func (c *Client) because(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause == nil {
		c.cause = err
	}
}

// call sends a request and waits for its reply, for requestTimeout at most. It takes fds over.
func (c *Client) call(ctx context.Context, k kind, body []byte, fds ...int) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	w := make(chan reply, 1)
	c.mu.Lock()
	if c.waiting == nil {
		err := c.err
		c.mu.Unlock()
		closeFDs(fds)
		return reply{}, err
	}
	c.last++
	id := c.last
	c.waiting[id] = w
	c.mu.Unlock()

	if err := c.conn.post(k, id, body, fds...); err != nil {
		c.forget(id, w)
		return reply{}, fmt.Errorf("ask the wire: %w", err)
	}
	select {
	case r, ok := <-w:
		if !ok {
			return reply{}, c.Err()
		}
		if r.kind != kindError {
			return r, nil
		}
		closeFDs(r.fds)
		f, err := parseFailure(r.body)
		switch {
		case err != nil:
			return reply{}, fmt.Errorf("read the wire's answer: %w", err)
		case f.code == codeUnsupported:
			return reply{}, fmt.Errorf("%w (%s)", ErrUnsupported, f.text)
		}
		return reply{}, fmt.Errorf("wire: %s", f.text)
	case <-ctx.Done():
		c.forget(id, w)
		return reply{}, fmt.Errorf("wait for the wire's answer: %w", ctx.Err())
	}
}

// forget gives up a call; a reply that came in between is closed.
func (c *Client) forget(id uint32, w <-chan reply) {
	closes := true
	c.mu.Lock()
	if _, ok := c.waiting[id]; ok {
		delete(c.waiting, id)
		closes = false
	}
	c.mu.Unlock()
	if closes { // dispatch has taken the entry and will send or has closed
		if r, ok := <-w; ok {
			closeFDs(r.fds)
		}
	}
}
