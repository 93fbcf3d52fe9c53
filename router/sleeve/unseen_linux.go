package sleeve

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's report of a socket's memory, of which the number of datagrams dropped is the last (sock_diag.h).
const (
	memoryDrops  = 8
	memoryFields = 9
)

// dropped is how many datagrams the kernel has dropped at the socket since it was opened.
func (s *socket) dropped() (uint32, error) {
	conn, err := s.conn.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("read drops of socket: %w", err)
	}
	var (
		report [memoryFields]uint32
		errno  unix.Errno
	)
	size := uint32(unsafe.Sizeof(report))
	err = conn.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&report)), uintptr(unsafe.Pointer(&size)), 0)
	})
	switch {
	case err != nil:
		return 0, fmt.Errorf("read drops of socket: %w", err)
	case errno != 0:
		return 0, fmt.Errorf("read drops of socket: %w", errno)
	case size < uint32(unsafe.Sizeof(report)):
		return 0, errors.New("read drops of socket: the kernel does not tell")
	}
	return report[memoryDrops], nil
}
