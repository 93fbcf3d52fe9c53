package wire

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"weft/mesh/peer"
	"weft/router"
	"weft/router/sleeve"
)

// Errors that a caller may want to tell apart.
var (
	ErrLost        = errors.New("the wire is gone")
	ErrStopped     = errors.New("the wire was stopped")
	ErrDisplaced   = errors.New("another weftd took the wire over")
	ErrUnsupported = errors.New("the running wire does not know this request")
	ErrClosed      = errors.New("detached from the wire")
)

// maxAccepted is how many TCP connections wait for Accept; more are closed.
const maxAccepted = 128

// Client is weftd's end of the control socket. Its methods may be called from any goroutine.
type Client struct {
	o     Options
	log   *slog.Logger
	hello Hello // set before anybody else has the client

	pid     int    // of the wire
	exit    string // how it ended, if it did; set before done is closed
	started bool   // by us

	accepted chan *os.File
	in       *queue // received
	out      *queue // to be sent
	refused  atomic.Uint64
	ended    chan struct{} // closed when the connection has ended
	done     chan struct{} // closed when the process is gone too, or is another's

	conn *conn

	mu       sync.Mutex
	socket   string // where the control socket is
	last     uint32
	waiting  map[uint32]chan<- reply
	desired  map[kind][]byte // for Replace
	devices  map[string]bool // of WireGuard that this weftd uses, likewise
	stopping bool
	cause    error // why the connection is about to end, when we know
	err      error

	tasks sync.WaitGroup
}

// Hello is what the wire said when this client attached.
func (c *Client) Hello() Hello { return c.hello }

// Started reports whether the wire is a new one, started by Ensure or by a service manager: nothing is held and nothing
// is known by it yet.
func (c *Client) Started() bool { return c.started || c.hello.Identity.IsZero() }

// SetIdentity tells who this node is. Like every setter it may be repeated: the wire acts on differences only.
func (c *Client) SetIdentity(ctx context.Context, id Identity) error {
	return c.set(ctx, kindIdentity, appendIdentity(nil, id))
}

// SetPeers makes the peers exactly these.
func (c *Client) SetPeers(ctx context.Context, peers []Peer) error {
	peers = slices.SortedFunc(slices.Values(peers), func(a, b Peer) int { return a.ID.Compare(b.ID) })
	return c.set(ctx, kindPeers, appendPeers(nil, peers))
}

// SetTunnels makes the sleeve's tunnels exactly these.
func (c *Client) SetTunnels(ctx context.Context, tunnels []router.Tunnel) error {
	tunnels = slices.SortedFunc(slices.Values(tunnels), func(a, b router.Tunnel) int { return a.Peer.Compare(b.Peer) })
	return c.set(ctx, kindTunnels, appendTunnels(nil, tunnels))
}

// SetLocal says which inner destinations are accepted from peers: our blocks and host addresses.
func (c *Client) SetLocal(ctx context.Context, local []netip.Prefix) error {
	return c.set(ctx, kindLocal, appendLocal(nil, local))
}

// SetRelay says whether this node carries datagrams between peers that cannot reach each other: a wire that was not told
// does not. An older one answers ErrUnsupported.
func (c *Client) SetRelay(ctx context.Context, on bool) error {
	return c.set(ctx, kindRelay, appendRelay(nil, on))
}

// SetSparse says whether sessions are opened by traffic: a wire that was not told has one with every peer. An older one
// answers ErrUnsupported.
func (c *Client) SetSparse(ctx context.Context, s Sparse) error {
	return c.set(ctx, kindSparse, appendSparse(nil, s))
}

// Punch sends a burst of datagrams to addresses of a peer now and for 400 ms, while the peer does the same to ours. An
// older wire answers ErrUnsupported.
func (c *Client) Punch(ctx context.Context, to peer.ID, at []netip.AddrPort) error {
	_, err := c.call(ctx, kindPunch, appendPunch(nil, punch{to, at}))
	return err
}

// set pushes desired state and keeps it for Replace. What may not have arrived is not kept, and neither is what was wanted
// before it: it may name somebody who was removed.
func (c *Client) set(ctx context.Context, k kind, body []byte) error {
	_, err := c.call(ctx, k, body)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		delete(c.desired, k)
		return err
	}
	c.desired[k] = body
	return nil
}

// GiveUDP hands over the sockets of the weft port, made by sleeve.ListenUDP. The wire gets duplicates; the caller
// closes its own. They replace all that the wire holds, unless it holds sockets with the same local addresses.
func (c *Client) GiveUDP(ctx context.Context, sockets []*os.File) error {
	return c.give(ctx, kindUDP, nil, sockets)
}

// GiveTCP hands over listeners in the same way.
func (c *Client) GiveTCP(ctx context.Context, listeners []*os.File) error {
	return c.give(ctx, kindTCP, nil, listeners)
}

// GiveTUN hands over the queues of the sleeve's device in the same way. Those of a device that exists no longer are
// never kept.
func (c *Client) GiveTUN(ctx context.Context, tun TUN, queues []*os.File) error {
	return c.give(ctx, kindTUN, appendTUN(nil, tun), queues)
}

// give sends duplicates of files.
func (c *Client) give(ctx context.Context, k kind, body []byte, files []*os.File) error {
	fds := make([]int, 0, len(files))
	for _, f := range files {
		fd, err := duplicate(f)
		if err != nil {
			closeFDs(fds)
			return fmt.Errorf("duplicate descriptor: %w", err)
		}
		fds = append(fds, fd)
	}
	_, err := c.call(ctx, k, body, fds...)
	return err
}

// lend is give for bare descriptors.
func (c *Client) lend(ctx context.Context, k kind, body []byte, fds ...int) error {
	own := make([]int, 0, len(fds))
	for _, fd := range fds {
		dup, err := duplicateFD(fd)
		if err != nil {
			closeFDs(own)
			return fmt.Errorf("duplicate descriptor: %w", err)
		}
		own = append(own, dup)
	}
	_, err := c.call(ctx, k, body, own...)
	return err
}

// Send hands a control datagram of at most sleeve.MaxControl bytes to the wire for a peer. It never blocks: as on any
// datagram path, what does not fit is dropped and counted. The slice stays with the caller.
func (c *Client) Send(to peer.ID, b []byte) error {
	if len(b) > sleeve.MaxControl {
		return fmt.Errorf("send %d bytes to %s: %w", len(b), to.Short(), sleeve.ErrTooLarge)
	}
	select {
	case <-c.done:
		return c.Err()
	default:
		c.out.push(Datagram{to, slices.Clone(b)})
		return nil
	}
}

// Receive waits for a control datagram. The slice belongs to the caller.
func (c *Client) Receive(ctx context.Context) (from peer.ID, b []byte, err error) {
	for {
		if d, ok := c.in.pop(); ok {
			return d.Peer, d.Data, nil
		}
		select {
		case <-c.in.ready:
		case <-c.done:
			return peer.ID{}, nil, c.Err()
		case <-ctx.Done():
			return peer.ID{}, nil, ctx.Err()
		}
	}
}

// Accept waits for a TCP connection to the weft port.
func (c *Client) Accept(ctx context.Context) (net.Conn, error) {
	for {
		select {
		case f := <-c.accepted:
			conn, err := net.FileConn(f)
			_ = f.Close()
			if err != nil { // reset while it waited
				continue
			}
			return conn, nil
		case <-c.done:
			return nil, c.Err()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Links asks what the wire knows about each peer now.
func (c *Client) Links(ctx context.Context) ([]router.Link, error) {
	s, err := c.Stats(ctx)
	if err != nil {
		return nil, err
	}
	links := make([]router.Link, len(s.Peers))
	for i := range s.Peers {
		links[i] = s.Peers[i].Link()
	}
	return links, nil
}

// Stats asks for all that the wire counts.
func (c *Client) Stats(ctx context.Context) (Stats, error) {
	r, err := c.call(ctx, kindStats, nil)
	if err != nil {
		return Stats{}, err
	}
	s, err := parseStats(r.body)
	if err != nil {
		return Stats{}, fmt.Errorf("read the wire's statistics: %w", err)
	}
	s.Counters.AcceptedClosed += c.refused.Load()
	s.Counters.DatagramsDropped += c.in.lost()
	s.Counters.DatagramsFailed += c.out.lost()
	return s, nil
}

// Stop ends the wire and waits until it is gone. Err is ErrStopped afterwards.
func (c *Client) Stop(ctx context.Context) error {
	if err := c.quit(ctx); err != nil {
		return fmt.Errorf("stop the wire: %w", err)
	}
	c.tasks.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return removeSocket(c.socket)
}

// quit ends the wire and waits until it has released all it held; the process may need a moment more.
func (c *Client) quit(ctx context.Context) error {
	c.mu.Lock()
	c.stopping = true
	c.mu.Unlock()
	if err := c.conn.post(kindStop, 0, nil); err != nil {
		return cmp.Or(c.Err(), err)
	}
	select {
	case <-c.ended:
	case <-ctx.Done():
		return fmt.Errorf("wait for its end: %w", ctx.Err())
	}
	if err := c.Err(); !errors.Is(err, ErrStopped) {
		return err
	}
	return nil
}

// moveSocket renames the control socket, replacing a stale one.
func (c *Client) moveSocket(path string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := os.Rename(c.socket, path); err != nil {
		return err
	}
	c.socket = path
	return nil
}

// Done is closed when the wire ended, another weftd displaced this one, or Close was called; Err says which.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is why Done is closed; nil while the connection lives.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close detaches and leaves the wire running. It returns when everything that the client started has ended.
func (c *Client) Close() error {
	c.because(ErrClosed)
	c.conn.close()
	c.tasks.Wait()
	return nil
}
