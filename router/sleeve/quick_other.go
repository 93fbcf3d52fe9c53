//go:build !linux

package sleeve

import (
	"net/netip"
	"os"
	"syscall"
)

// raw finds nothing: the runtime's calls are used.
func raw(syscall.Conn) syscall.RawConn { return nil }

// queue reads and writes one TUN queue, a packet at a time.
type queue struct{ file *os.File }

func newQueue(f *os.File) *queue { return &queue{f} }

// get reads a packet, if told to wait for one; 0 without an error means that there is none yet.
func (q *queue) get(b []byte, wait bool) (int, error) {
	if !wait {
		return 0, nil
	}
	return q.file.Read(b)
}

func (q *queue) put(b []byte) error {
	_, err := q.file.Write(b)
	return err
}

// port sends and receives on one UDP socket, a datagram at a time.
type port struct{ sock *socket }

func newPort(s *socket) *port { return &port{s} }

func (p *port) get(b []byte) (n, size int, tos uint8, from netip.AddrPort, err error) {
	n, _, _, from, err = p.sock.conn.ReadMsgUDPAddrPort(b, nil)
	return n, 0, 0, from, err
}

func (p *port) put(b []byte, _ int, to netip.AddrPort, _ uint8) error {
	_, _, err := p.sock.conn.WriteMsgUDPAddrPort(b, nil, to)
	return err
}
