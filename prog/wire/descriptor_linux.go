package wire

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// rightsSpace is the room that a control message with n descriptors takes.
func rightsSpace(n int) int { return unix.CmsgSpace(4 * n) }

// rights encodes fds as a control message.
func rights(fds []int) []byte { return unix.UnixRights(fds...) }

// parseRights takes the descriptors out of a control message; what could be taken is returned with the error too.
func parseRights(oob []byte, flags int) ([]int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("read control message: %w", err)
	}
	var all []int
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return all, fmt.Errorf("read descriptors: %w", err)
		}
		all = append(all, fds...)
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return all, errors.New("descriptors were cut off: too many open files")
	}
	return all, nil
}

// duplicate makes a descriptor of our own of f, whose mode stays as it is.
func duplicate(f syscall.Conn) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var dupErr error
	if err := raw.Control(func(s uintptr) { fd, dupErr = duplicateFD(int(s)) }); err != nil {
		return -1, err
	}
	return fd, dupErr
}

func duplicateFD(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3) }

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// pollable makes a file of fd, which it takes over, that waits in the runtime's poller.
func pollable(fd int, name string) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make %s non-blocking: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// orphaned reports whether fd is a queue whose TUN device was deleted.
func orphaned(fd int) bool {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return false
	}
	return errors.Is(unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr), unix.EBADFD)
}

// closeInherited closes what the process was born with beyond stdin, stdout, stderr and keep: whoever started it may
// have had files open that are none of its business. What this process has opened itself closes on exec and stays.
func closeInherited(keep int) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < 3 || fd == keep {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.Close(fd)
		}
	}
}

// credentials asks who connected (on the wire's side) or who listens (on weftd's).
func credentials(c *net.UnixConn) (pid int, uid uint32, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var cred *unix.Ucred
	var sysErr error
	err = raw.Control(func(fd uintptr) {
		cred, sysErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, sysErr); err != nil {
		return 0, 0, fmt.Errorf("read peer credentials: %w", err)
	}
	return int(cred.Pid), cred.Uid, nil
}

// sign makes the kernel name this process as the one that listens on an inherited socket.
func sign(ln syscall.Conn) error {
	raw, err := ln.SyscallConn()
	if err != nil {
		return err
	}
	var sysErr error
	err = raw.Control(func(fd uintptr) { sysErr = unix.Listen(int(fd), backlog) })
	return errors.Join(err, sysErr)
}
