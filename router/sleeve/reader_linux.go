package sleeve

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// reader reads what already waits in a TUN queue. The function for the runtime's poller is made once, since making it
// allocates.
type reader struct {
	conn syscall.RawConn
	try  func(fd uintptr) bool
	b    []byte
	n    int
	err  error
}

func (r *reader) init(f *os.File) {
	c, err := f.SyscallConn()
	if err != nil {
		return // now finds nothing, and reading the file tells why
	}
	r.conn = c
	r.try = func(fd uintptr) bool {
		r.n, r.err = unix.Read(int(fd), r.b)
		return true
	}
}

// now reads a packet if there is one; 0 without an error means that there is none, or that the file's own Read knows
// better.
func (r *reader) now(b []byte) (int, error) {
	if r.conn == nil {
		return 0, nil
	}
	r.b = b
	if r.conn.Read(r.try) != nil { // closed, in words of the runtime's own that errors.Is does not know
		return 0, nil //nolint:nilerr // Read says it in better ones
	}
	if r.n < 0 || errors.Is(r.err, unix.EAGAIN) || errors.Is(r.err, unix.EINTR) {
		return 0, nil
	}
	return r.n, r.err
}
