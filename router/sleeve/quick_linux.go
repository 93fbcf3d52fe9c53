package sleeve

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The packet path makes its system calls without telling Go's scheduler. A send or a write of 60 KB carries the packet
// through the kernel's stack before it returns; that takes longer than the 20 µs after which the scheduler takes the
// processor from a thread in a system call, gives it to another thread, and looks again 20 µs later: wake-ups that cost
// as much as the packets. None of these calls can block: the descriptors are not blocking, and waiting is left to the
// runtime's poller.

// raw gives the descriptor behind a file or connection, if calls on it never block; otherwise nil.
func raw(c syscall.Conn) syscall.RawConn {
	conn, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	quick := false
	err = conn.Control(func(fd uintptr) {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		quick = err == nil && flags&unix.O_NONBLOCK != 0
	})
	if err != nil || !quick {
		return nil
	}
	return conn
}

// queue reads and writes one TUN queue. It is not safe for concurrent use, but several may share a file.
type queue struct {
	file        *os.File
	conn        syscall.RawConn // nil: the file may block
	b           []byte
	wait        bool
	n           int
	errno       syscall.Errno
	read, write func(fd uintptr) bool // made once, since making them allocates
}

func newQueue(f *os.File) *queue {
	q := &queue{file: f, conn: raw(f)}
	q.read = func(fd uintptr) bool { return q.call(unix.SYS_READ, fd) }
	q.write = func(fd uintptr) bool { return q.call(unix.SYS_WRITE, fd) }
	return q
}

func (q *queue) call(trap, fd uintptr) (done bool) {
	for {
		n, _, errno := unix.RawSyscall(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(q.b))), uintptr(len(q.b)))
		if errno != unix.EINTR {
			q.n, q.errno = int(n), errno
			return errno != unix.EAGAIN || !q.wait
		}
	}
}

// get reads a packet, and waits for one if told to; 0 without an error means that there is none yet.
func (q *queue) get(b []byte, wait bool) (int, error) {
	if q.conn == nil {
		if !wait {
			return 0, nil
		}
		return q.file.Read(b)
	}
	q.b, q.wait = b, wait
	if q.conn.Read(q.read) != nil { // closed, in words of the runtime's own that errors.Is does not know
		return 0, os.ErrClosed
	}
	switch q.errno {
	case 0:
		return q.n, nil
	case unix.EAGAIN:
		return 0, nil
	}
	return 0, os.NewSyscallError("read", q.errno)
}

// put writes a packet.
func (q *queue) put(b []byte) error {
	if q.conn == nil {
		_, err := q.file.Write(b)
		return err
	}
	q.b, q.wait = b, true
	if q.conn.Write(q.write) != nil {
		return os.ErrClosed
	}
	if q.errno != 0 {
		return os.NewSyscallError("write", q.errno)
	}
	return nil
}

// port sends and receives on one UDP socket. It is not safe for concurrent use, but several may share a socket.
type port struct {
	sock  *socket
	hdr   unix.Msghdr
	iov   unix.Iovec
	name  unix.RawSockaddrInet6 // of either family
	oob   [max(sendOOB, recvOOB)]byte
	n     int
	errno syscall.Errno
	zone  struct {
		id   uint32
		name string
	}
	recv, send func(fd uintptr) bool // made once, since making them allocates
}

func newPort(s *socket) *port {
	p := &port{sock: s}
	p.recv = func(fd uintptr) bool { return p.call(unix.SYS_RECVMSG, fd) }
	p.send = func(fd uintptr) bool { return p.call(unix.SYS_SENDMSG, fd) }
	p.hdr.Name = (*byte)(unsafe.Pointer(&p.name))
	p.hdr.Iov = &p.iov
	p.hdr.Iovlen = 1
	return p
}

func (p *port) call(trap, fd uintptr) (done bool) {
	for {
		n, _, errno := unix.RawSyscall(trap, fd, uintptr(unsafe.Pointer(&p.hdr)), 0)
		if errno != unix.EINTR {
			p.n, p.errno = int(n), errno
			return errno != unix.EAGAIN
		}
	}
}

// get waits for what one receive gives: datagrams of size bytes back to back, the last may be shorter.
func (p *port) get(b []byte) (n, size int, tos uint8, from netip.AddrPort, err error) {
	if p.sock.raw == nil {
		n, oobn, _, from, err := p.sock.conn.ReadMsgUDPAddrPort(b, p.oob[:])
		size, tos = parseRecvOOB(p.oob[:oobn])
		return n, size, tos, from, err
	}
	p.iov.Base = unsafe.SliceData(b)
	p.iov.SetLen(len(b))
	p.hdr.Namelen = unix.SizeofSockaddrInet6
	p.hdr.Control = &p.oob[0]
	p.hdr.SetControllen(len(p.oob))
	if err := p.sock.raw.Read(p.recv); err != nil {
		return 0, 0, 0, from, err
	}
	if p.errno != 0 {
		return 0, 0, 0, from, os.NewSyscallError("recvmsg", p.errno)
	}
	size, tos = parseRecvOOB(p.oob[:p.hdr.Controllen])
	return p.n, size, tos, p.from(), nil
}

// put sends b to an address; segment, unless 0, is what the kernel cuts it into.
func (p *port) put(b []byte, segment int, to netip.AddrPort, tos uint8) error {
	oob := putSendOOB(p.oob[:], p.sock.v6, segment, tos)
	if p.sock.raw == nil || to.Addr().Zone() != "" {
		_, _, err := p.sock.conn.WriteMsgUDPAddrPort(b, oob, to)
		return err
	}
	p.iov.Base = unsafe.SliceData(b)
	p.iov.SetLen(len(b))
	p.to(to)
	p.hdr.Control = nil
	if len(oob) > 0 {
		p.hdr.Control = &oob[0]
	}
	p.hdr.SetControllen(len(oob))
	if err := p.sock.raw.Write(p.send); err != nil {
		return err
	}
	if p.errno != 0 {
		return os.NewSyscallError("sendmsg", p.errno)
	}
	return nil
}

// to and from translate the address: the port stands at the same place in both families, in network byte order.

func (p *port) to(a netip.AddrPort) {
	p.name = unix.RawSockaddrInet6{}
	n := a.Port()
	*(*[2]byte)(unsafe.Pointer(&p.name.Port)) = [2]byte{byte(n >> 8), byte(n)}
	if a.Addr().Is4() {
		p.name.Family = unix.AF_INET
		(*unix.RawSockaddrInet4)(unsafe.Pointer(&p.name)).Addr = a.Addr().As4()
		p.hdr.Namelen = unix.SizeofSockaddrInet4
		return
	}
	p.name.Family = unix.AF_INET6
	p.name.Addr = a.Addr().As16()
	p.hdr.Namelen = unix.SizeofSockaddrInet6
}

func (p *port) from() netip.AddrPort {
	be := *(*[2]byte)(unsafe.Pointer(&p.name.Port))
	n := uint16(be[0])<<8 | uint16(be[1])
	switch p.name.Family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(&p.name)).Addr), n)
	case unix.AF_INET6:
		a := netip.AddrFrom16(p.name.Addr).Unmap()
		if id := p.name.Scope_id; id != 0 && a.IsLinkLocalUnicast() {
			a = a.WithZone(p.zoneName(id))
		}
		return netip.AddrPortFrom(a, n)
	}
	return netip.AddrPort{}
}

// zoneName remembers the last one: asking the kernel for each packet would be slower than all the rest.
func (p *port) zoneName(id uint32) string {
	if p.zone.id != id {
		p.zone.id, p.zone.name = id, strconv.FormatUint(uint64(id), 10)
		if i, err := net.InterfaceByIndex(int(id)); err == nil {
			p.zone.name = i.Name
		}
	}
	return p.zone.name
}
