package wire

import (
	"net"

	"golang.org/x/sys/unix"
)

// asksForData looks at what a connection says first, and leaves it there for whoever reads it. It waits as long as the
// connection's deadline allows.
func asksForData(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	buf := make([]byte, maxHelloLookedAt)
	data := false
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_PEEK|unix.MSG_DONTWAIT)
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
				return false
			case err != nil, n == 0: // broken, or closed and read
				return true
			}
			var enough bool
			if data, enough = looksForData(buf[:n]); enough || n == len(buf) {
				return true
			}
			return false
		}
	})
	return err == nil && data
}
