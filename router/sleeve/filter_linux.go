package sleeve

import (
	"errors"
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// filter puts a program between the kernel and the socket, in place of the one before; none takes that away. It needs no
// rights.
func (s *socket) filter(program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	code := make([]unix.SockFilter, 0, len(raw))
	for _, i := range raw {
		code = append(code, unix.SockFilter{Code: i.Op, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	conn, err := s.conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("set filter: %w", err)
	}
	var fail error
	err = conn.Control(func(fd uintptr) {
		if len(code) == 0 {
			if fail = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); errors.Is(fail, unix.ENOENT) {
				fail = nil
			}
			return
		}
		fail = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]})
	})
	if err = errors.Join(err, fail); err != nil {
		return fmt.Errorf("set filter: %w", err)
	}
	return nil
}
