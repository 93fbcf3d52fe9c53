package sleeve

import (
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
)

// Sizes of one send.
const (
	maxSegments = 64    // of one UDP_SEGMENT send: the limit of kernels before 6.9
	maxSend     = 65507 // bytes
)

// socket is one UDP socket; sending from several goroutines is safe.
type socket struct {
	conn     *net.UDPConn
	raw      syscall.RawConn // nil: using it might block
	v6       bool
	oneByOne atomic.Bool // the kernel or the card refused to cut a send into datagrams
	unseen   unseen
}

func newSocket(c *net.UDPConn) *socket {
	a, _ := c.LocalAddr().(*net.UDPAddr)
	s := &socket{conn: c, raw: raw(c), v6: a != nil && a.AddrPort().Addr().Unmap().Is6()}
	_ = s.filter(nil)              // which an engine before this one may have left
	s.unseen.last, _ = s.dropped() // was dropped in the time of that engine
	return s
}

// sockets are the sockets by family; replaced, never changed.
type sockets struct{ v4, v6 *socket }

func (s *sockets) to(a netip.AddrPort) *socket {
	switch {
	case s == nil:
		return nil
	case a.Addr().Is6():
		return s.v6
	}
	return s.v4
}

// run sends datagrams of size bytes each, back to back, the last may be shorter. tos is the outer traffic class. It returns
// how many datagrams were refused, with the last error.
func (p *port) run(b []byte, size int, to netip.AddrPort, tos uint8) (refused int, err error) {
	if len(b) > size && !p.sock.oneByOne.Load() {
		err := p.put(b, size, to, tos)
		again, always := refusesSegments(err)
		if !again {
			if err != nil {
				return (len(b) + size - 1) / size, err
			}
			return 0, nil
		}
		if always {
			p.sock.oneByOne.Store(true)
		}
	}
	for len(b) > 0 {
		n := min(size, len(b))
		if e := p.put(b[:n], 0, to, tos); e != nil {
			refused, err = refused+1, e
		}
		b = b[n:]
	}
	return refused, err
}
