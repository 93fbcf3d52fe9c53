package wire

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"time"

	wgconn "golang.zx2c4.com/wireguard/conn"
)

const (
	bindQueue = 1024             // datagrams that wait for a device; more are dropped and counted
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

// offer is called by the engine for each datagram of WireGuard's; b is lent.
func (f *foreign) offer(b []byte, from netip.AddrPort) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if len(f.binds) == 1 {
		f.binds[0].push(b, from)
		return
	}
	at := 4 // of the receiver's index: cookies and packets
	switch b[0] {
	case 1:
		for _, d := range f.binds {
			d.push(b, from)
		}
		return
	case 2:
		at = 8
	}
	i := binary.LittleEndian.Uint32(b[at:])
	d := f.indexes[i]
	if d == nil {
		d = f.former[i]
	}
	if d != nil {
		d.push(b, from)
	}
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

// arrival is a datagram that waits for its device.
type arrival struct {
	b    []byte
	from netip.AddrPort
}

// portBind is the weft port as one device of wireguard-go sees it.
type portBind struct {
	f     *foreign
	in    chan *arrival
	spare sync.Pool // of *arrival

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

// push copies a datagram for the device, which must never hold up the port.
func (d *portBind) push(b []byte, from netip.AddrPort) {
	a := d.spare.Get().(*arrival)
	a.b, a.from = append(a.b[:0], b...), from
	select {
	case d.in <- a:
	default:
		d.spare.Put(a)
	}
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
	return []wgconn.ReceiveFunc{func(packets [][]byte, sizes []int, eps []wgconn.Endpoint) (int, error) {
		return d.receive(closed, packets, sizes, eps)
	}}, port, nil
}

func (d *portBind) receive(closed chan struct{}, packets [][]byte, sizes []int, eps []wgconn.Endpoint) (n int, err error) {
	var a *arrival
	select {
	case <-closed:
		return 0, net.ErrClosed
	case a = <-d.in:
	}
	for {
		sizes[n] = copy(packets[n], a.b)
		eps[n] = remoteEnd{a.from}
		d.spare.Put(a)
		if n++; n == len(packets) {
			return n, nil
		}
		select {
		case a = <-d.in:
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
