package control

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"unsafe"
)

// soPeerGroups asks for the supplementary groups of the process that connected (Linux 4.13).
const soPeerGroups = 59

// maxGroups is the kernel's NGROUPS_MAX.
const maxGroups = 65536

// callerOf asks the kernel who connected. For the client's end of a connection it is whoever listens.
func callerOf(conn *net.UnixConn) (caller, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return caller{}, fmt.Errorf("inspect connection: %w", err)
	}
	var c caller
	var inner error
	err = raw.Control(func(fd uintptr) {
		cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
		if err != nil {
			inner = err
			return
		}
		c = caller{pid: int(cred.Pid), uid: cred.Uid, groups: append(peerGroups(fd), cred.Gid)}
	})
	if err := errors.Join(err, inner); err != nil {
		return caller{}, fmt.Errorf("read peer credentials: %w", err)
	}
	return c, nil
}

// ended reports whether a process that had this number is no more.
func ended(pid int) bool { return pid > 0 && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

// peerGroups is empty where the kernel cannot tell: the primary group still counts then.
func peerGroups(fd uintptr) []uint32 {
	for n := 64; n <= maxGroups; {
		groups := make([]uint32, n)
		size := uint32(4 * n)
		_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, syscall.SOL_SOCKET, soPeerGroups,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0 && int(size) <= 4*n:
			return groups[:size/4]
		case errno != syscall.ERANGE || int(size) <= 4*n:
			return nil
		}
		n = int(size) / 4 // the kernel said how many there are
	}
	return nil
}
