package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// A socket file that nobody listens on is what dockerd takes longest to give up: it tries again for 15 s per call, as it
// does for a plugin that is not there. So the file goes with the daemon, and what a killed one left is replaced.

const knockTime = time.Second // for whoever may listen already

// socket is the listener and what its file was when it was made.
type socket struct {
	path     string
	listener *net.UnixListener
	file     os.FileInfo
	madeDir  string // to be removed again; empty: it was there
}

func listen(ctx context.Context, path string) (*socket, error) {
	s := &socket{path: path}
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		s.madeDir = dir
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of the plugin socket: %w", err)
	}
	if err := clearStale(ctx, path); err != nil {
		return nil, err
	}
	// The mode is that of the socket before it has a name, so that it is closed to others from the first moment.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if cerr := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }); cerr != nil {
			err = cerr
		}
		return err
	}}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("open the plugin socket: %w", err)
	}
	s.listener, _ = l.(*net.UnixListener) // what listens on unix
	s.listener.SetUnlinkOnClose(false)    // by then the file may be another's
	if s.file, err = os.Lstat(path); err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the plugin socket: %w", err), l.Close())
	}
	return s, nil
}

// clearStale removes a socket file that nobody listens on, and refuses anything else.
func clearStale(ctx context.Context, path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at the plugin socket: %w", err)
	case st.Mode()&fs.ModeSocket == 0:
		return fmt.Errorf("%s is no socket and not weft's", path)
	}
	ctx, cancel := context.WithTimeout(ctx, knockTime)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("another program listens on %s", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("find out who listens on %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the socket that a former weft left: %w", err)
	}
	return nil
}

// ours reports whether the file is still the one that was made.
func (s *socket) ours() bool {
	st, err := os.Lstat(s.path)
	return err == nil && os.SameFile(st, s.file)
}

// remove takes the file away, unless it is another's by now.
func (s *socket) remove() {
	if s.ours() {
		_ = os.Remove(s.path)
	}
	if s.madeDir != "" {
		_ = os.Remove(s.madeDir) // fails where another plugin has moved in
	}
}
