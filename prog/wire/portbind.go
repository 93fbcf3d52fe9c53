package wire

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	wgconn "golang.zx2c4.com/wireguard/conn"
)

const (
	bindQueue = 1024             // runs of datagrams that wait for a device
	bindBytes = 2 << 20          // and how long they may be together; more are dropped, as a full socket drops them
	maxRun    = 60 << 10         // bytes that are sent at once
	indexLife = 10 * time.Minute // a session of WireGuard's lives three
)

// foreign shares the weft port with WireGuard: datagrams of the devices go out through it, and what comes in goes to the
// device that it is for. A message but the first of a handshake names its receiver by an index that the device had put
// into a message of its own; the first goes to all, and only the one whose key it was made with understands it.
type foreign struct {
	send func(run []byte, size int, to netip.AddrPort) error

	mu      sync.RWMutex // guards all below
	binds   []*portBind
	indexes map[uint32]*portBind // of the present and the last while
	former  map[uint32]*portBind
	turned  time.Time
}

// offer is called by the engine for datagrams of WireGuard's, of size bytes each back to back; they are lent. While there is no
// device nothing is taken, and the engine may hold back what comes.
func (f *foreign) offer(run []byte, size int, from netip.AddrPort) (taken bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	switch len(f.binds) {
	case 0:
		return false
	case 1:
		f.binds[0].push(run, size, from)
		return true
	}
	for len(run) > 0 {
		n := min(size, len(run))
		to := f.receiver(run[:n])
		for to != nil && n < len(run) {
			next := min(size, len(run)-n)
			if f.receiver(run[n:n+next]) != to {
				break
			}
			n += next
		}
		if to != nil {
			to.push(run[:n], size, from)
		} else if run[0] == 1 {
			for _, d := range f.binds {
				d.push(run[:n], size, from)
			}
		}
		run = run[n:]
	}
	return true
}

// receiver is the device that a datagram is for; nil when it is nobody's, or a first message. mu is held for reading.
func (f *foreign) receiver(b []byte) *portBind {
	at := 4 // of the receiver's index: cookies and packets
	switch b[0] {
	case 1:
		return nil
	case 2:
		at = 8
	}
	i := binary.LittleEndian.Uint32(b[at:])
	if d := f.indexes[i]; d != nil {
		return d
	}
	return f.former[i]
}

// learn keeps the index that a handshake message of a device tells the other end.
func (f *foreign) learn(d *portBind, b []byte) {
	if len(b) < 8 || b[0] != 1 && b[0] != 2 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); f.indexes == nil || now.Sub(f.turned) > indexLife {
		f.former, f.indexes, f.turned = f.indexes, make(map[uint32]*portBind), now
	}
	f.indexes[binary.LittleEndian.Uint32(b[4:])] = d
}

func (f *foreign) add(d *portBind) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.binds = append(f.binds, d)
}

func (f *foreign) remove(d *portBind) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, other := range f.binds {
		if other == d {
			f.binds = append(f.binds[:i:i], f.binds[i+1:]...)
			return
		}
	}
}

// arrival is a run of datagrams that waits for its device.
type arrival struct {
	b    []byte
	size int
	from netip.AddrPort
}

// portBind is the weft port as one device of wireguard-go sees it.
type portBind struct {
	f     *foreign
	in    chan *arrival
	bytes atomic.Int64 // in it
	spare sync.Pool    // of *arrival

	mu     sync.Mutex
	closed chan struct{} // nil while it is not open
	out    sync.Pool     // of *[]byte
}

var _ wgconn.Bind = (*portBind)(nil)

func newBind(f *foreign) *portBind {
	return &portBind{
		f: f, in: make(chan *arrival, bindQueue),
		spare: sync.Pool{New: func() any { return &arrival{b: make([]byte, 0, 2048)} }},
		out:   sync.Pool{New: func() any { b := make([]byte, 0, maxRun); return &b }},
	}
}

// push copies a run for the device, which must never hold up the port.
func (d *portBind) push(run []byte, size int, from netip.AddrPort) {
	if d.bytes.Add(int64(len(run))) > bindBytes {
		d.bytes.Add(-int64(len(run)))
		return
	}
	a := d.spare.Get().(*arrival)
	a.b, a.size, a.from = append(a.b[:0], run...), size, from
	select {
	case d.in <- a:
	default:
		d.free(a)
	}
}

// free takes a run back.
func (d *portBind) free(a *arrival) {
	d.bytes.Add(-int64(len(a.b)))
	d.spare.Put(a)
}

// Open starts receiving. The port is the engine's, whatever the device asks for.
func (d *portBind) Open(port uint16) ([]wgconn.ReceiveFunc, uint16, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed != nil {
		return nil, 0, wgconn.ErrBindAlreadyOpen
	}
	closed := make(chan struct{})
	d.closed = closed
	r := &bindReader{d: d, closed: closed}
	return []wgconn.ReceiveFunc{r.read}, port, nil
}

// bindReader takes runs apart for a device, which reads with one goroutine.
type bindReader struct {
	d      *portBind
	closed chan struct{}
	run    *arrival // nil, or one of which off bytes are read
	off    int
}

// read waits for one run and takes along what else is there, as far as the packets reach.
func (r *bindReader) read(packets [][]byte, sizes []int, eps []wgconn.Endpoint) (n int, err error) {
	if r.run == nil {
		select {
		case <-r.closed:
			return 0, net.ErrClosed
		case r.run = <-r.d.in:
			r.off = 0
		}
	}
	for {
		end := remoteEnd{r.run.from}
		for ; r.off < len(r.run.b) && n < len(packets); n++ {
			next := r.run.b[r.off:min(r.off+r.run.size, len(r.run.b))]
			sizes[n], eps[n] = copy(packets[n], next), end
			r.off += len(next)
		}
		if r.off < len(r.run.b) {
			return n, nil
		}
		r.d.free(r.run)
		r.run = nil
		if n == len(packets) {
			return n, nil
		}
		select {
		case r.run = <-r.d.in:
			r.off = 0
		default:
			return n, nil
		}
	}
}

// Close ends receiving.
func (d *portBind) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed != nil {
		close(d.closed)
		d.closed = nil
	}
	return nil
}

// SetMark is not needed: routes to peers never lead the port's datagrams into a tunnel.
func (d *portBind) SetMark(uint32) error { return nil }

// Send sends datagrams to one end. Those of one length travel in one call.
func (d *portBind) Send(bufs [][]byte, ep wgconn.Endpoint) error {
	to, ok := ep.(remoteEnd)
	if !ok {
		return wgconn.ErrWrongEndpointType
	}
	run := d.out.Get().(*[]byte)
	defer d.out.Put(run)
	*run = (*run)[:0]
	size := 0
	flush := func() error {
		if len(*run) == 0 {
			return nil
		}
		err := d.f.send(*run, size, to.AddrPort)
		*run, size = (*run)[:0], 0
		return err
	}
	for _, b := range bufs {
		d.f.learn(d, b)
		if size != 0 && len(b) > size || len(*run)+len(b) > maxRun {
			if err := flush(); err != nil {
				return err
			}
		}
		if size == 0 {
			size = len(b)
		}
		*run = append(*run, b...)
		if len(b) < size { // a shorter one ends a run
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// ParseEndpoint reads an address and port.
func (d *portBind) ParseEndpoint(s string) (wgconn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return remoteEnd{netip.AddrPortFrom(a.Addr().Unmap(), a.Port())}, nil
}

// BatchSize is how many datagrams travel at a time.
func (d *portBind) BatchSize() int { return wgconn.IdealBatchSize }

// remoteEnd is where a device's peer is.
type remoteEnd struct{ netip.AddrPort }

var _ wgconn.Endpoint = remoteEnd{}

func (e remoteEnd) ClearSrc()           {}
func (e remoteEnd) SrcToString() string { return "" }
func (e remoteEnd) DstToString() string { return e.String() }
func (e remoteEnd) DstToBytes() []byte  { b, _ := e.MarshalBinary(); return b }
func (e remoteEnd) DstIP() netip.Addr   { return e.Addr() }
func (e remoteEnd) SrcIP() netip.Addr   { return netip.Addr{} }
