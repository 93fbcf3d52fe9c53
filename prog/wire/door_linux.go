package wire

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// door takes the connections of one TCP port. The net package makes ten system calls for each before anybody can look where
// it is from; here those that are not wanted, of which a flood consists, cost three.
type door struct {
	ln   *net.TCPListener
	file *os.File // a duplicate that may be asked for connections one by one
	raw  syscall.RawConn
}

// newDoor takes ln over, unless it returns an error.
func newDoor(ln *net.TCPListener) (*door, error) {
	f, err := ln.File()
	if err != nil {
		return nil, fmt.Errorf("duplicate listener: %w", err)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("duplicate listener: %w", err)
	}
	return &door{ln: ln, file: f, raw: raw}, nil
}

// Close ends accept.
func (d *door) Close() error { return errors.Join(d.file.Close(), d.ln.Close()) }

// accept waits for the next connection from an address that may come in, and closes all others. When it has closed some and
// nobody else waits, it says errRefused: to be woken for each of a flood costs more than to close it.
func (d *door) accept(may func(netip.Addr) bool) (*net.TCPConn, error) {
	fd, refused := -1, false
	var failed error
	err := d.raw.Read(func(s uintptr) bool {
		for {
			n, from, err := unix.Accept4(int(s), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			switch {
			case err == unix.EINTR, err == unix.ECONNABORTED: // gone before it was taken
			case err == unix.EAGAIN && refused:
				failed = errRefused
				return true
			case err == unix.EAGAIN:
				return false
			case err != nil:
				failed = os.NewSyscallError("accept", err)
				return true
			case !may(addrOf(from)):
				_ = unix.Close(n)
				refused = true
			default:
				fd = n
				return true
			}
		}
	})
	if err != nil { // closed, in words of the runtime's own that errors.Is does not know
		return nil, fmt.Errorf("wait for connections: %w", net.ErrClosed)
	}
	if failed != nil {
		return nil, failed
	}
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close() //nolint:errcheck // the connection has its own
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("take connection: %w", err)
	}
	tc, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, errors.New("take connection: it is not TCP")
	}
	return tc, nil
}

// addrOf is where a connection comes from.
func addrOf(from unix.Sockaddr) netip.Addr {
	switch a := from.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(a.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(a.Addr).Unmap()
	}
	return netip.Addr{}
}
