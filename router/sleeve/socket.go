package sleeve

import (
	"net"
	"net/netip"
	"sync/atomic"
)

// Sizes of one send.
const (
	maxSegments = 64    // of one UDP_SEGMENT send: the limit of kernels before 6.9
	maxSend     = 65507 // bytes
)

// socket is one UDP socket; sending from several goroutines is safe.
type socket struct {
	conn     *net.UDPConn
	v6       bool
	oneByOne atomic.Bool // the kernel or the card refused to cut a send into datagrams
}

func newSocket(c *net.UDPConn) *socket {
	a, _ := c.LocalAddr().(*net.UDPAddr)
	return &socket{conn: c, v6: a != nil && a.AddrPort().Addr().Unmap().Is6()}
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

// send sends run: datagrams of size bytes each, back to back, the last may be shorter. tos is the outer traffic class.
// oob is scratch space of at least sendOOB bytes. It returns how many datagrams were refused, with the last error.
func (s *socket) send(run []byte, size int, to netip.AddrPort, tos uint8, oob []byte) (refused int, err error) {
	if len(run) > size && !s.oneByOne.Load() {
		_, _, err := s.conn.WriteMsgUDPAddrPort(run, putSendOOB(oob, s.v6, size, tos), to)
		again, always := refusesSegments(err)
		if !again {
			if err != nil {
				return (len(run) + size - 1) / size, err
			}
			return 0, nil
		}
		if always {
			s.oneByOne.Store(true)
		}
	}
	extra := putSendOOB(oob, s.v6, 0, tos)
	for len(run) > 0 {
		n := min(size, len(run))
		if _, _, e := s.conn.WriteMsgUDPAddrPort(run[:n], extra, to); e != nil {
			refused, err = refused+1, e
		}
		run = run[n:]
	}
	return refused, err
}
