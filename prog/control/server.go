package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// Limits of the server. Everything a caller can make grow is bounded.
const (
	maxConns    = 128      // open connections of those who may change things, and as many of all others
	maxRequests = 64       // at work at once, likewise; further ones are refused with Busy
	maxBody     = 64 << 10 // bytes of a request
	maxCollect  = 2 << 20  // of one that lists what a runtime has: twice what the plugin reads of a runtime
	maxHeader   = 16 << 10

	headerTimeout = 5 * time.Second
	bodyTimeout   = 10 * time.Second // with the header
	idleTimeout   = 30 * time.Second
	shutdownGrace = 3 * time.Second // for answers that are on their way when the daemon stops
)

// DefaultGroup may read.
const DefaultGroup = "weft"

// Config is what a Server needs.
type Config struct {
	Path    string       // of the socket; the directory is made when it is missing
	Group   string       // whose members may read: DefaultGroup. Without such a group the socket is for its owner only
	Backend Backend      // who answers
	Log     *slog.Logger // nil: silent
}

// Server listens on the control socket.
type Server struct {
	cfg      Config
	gid      int64 // of cfg.Group, negative when it does not exist
	lock     *os.File
	listener *net.UnixListener
	close    sync.Once
}

// Listen takes the socket over and returns without answering yet, so that a daemon finds out that it is not alone
// before it touches anything. A socket that nobody serves any more is replaced; one that is served is refused.
func Listen(cfg Config) (*Server, error) {
	if cfg.Group == "" {
		cfg.Group = DefaultGroup
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := makeFolder(filepath.Dir(cfg.Path)); err != nil {
		return nil, socketError(cfg.Path, err)
	}
	s := &Server{cfg: cfg, gid: groupID(cfg.Group)}
	if err := s.listen(); err != nil {
		return nil, errors.Join(err, s.unlock())
	}
	return s, nil
}

// makeFolder makes the folder of a socket, through which the group has to come, whatever the umask. One that is there is
// left as it is.
func makeFolder(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	return os.Chmod(path, 0o755)
}

func (s *Server) listen() error {
	if err := s.outlive(); err != nil {
		return err
	}
	info, err := os.Lstat(s.cfg.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return socketError(s.cfg.Path, err)
	case info.Mode().Type() != fs.ModeSocket:
		return socketError(s.cfg.Path, errors.New("a file that is no socket is in the way"))
	default:
		if err := os.Remove(s.cfg.Path); err != nil {
			return socketError(s.cfg.Path, err)
		}
	}
	if s.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: s.cfg.Path, Net: "unix"}); err != nil {
		return socketError(s.cfg.Path, err)
	}
	// Whoever connects before the mode is set is judged by the same credentials as later, so there is no window.
	mode := fs.FileMode(0o600)
	if s.gid >= 0 && os.Chown(s.cfg.Path, -1, int(s.gid)) == nil {
		mode = 0o660
	}
	if err := os.Chmod(s.cfg.Path, mode); err != nil {
		s.listener.Close()
		return socketError(s.cfg.Path, err)
	}
	return nil
}

// heirPatience is how long a daemon waits for what a killed one had begun to start.
const heirPatience = 5 * time.Second

// outlive takes the lock, or says who serves the socket. The lock decides, not the socket file: of two daemons that find a
// stale socket at the same moment, one gets it. A process that a daemon had forked when it was killed holds its lock and
// its socket for a moment, until it has become another program: that is nobody who runs here, and is waited for.
func (s *Server) outlive() error {
	for end := time.Now().Add(heirPatience); ; {
		mine := s.lock != nil
		if !mine {
			var err error
			if mine, err = s.takeLock(); err != nil {
				return socketError(s.cfg.Path, err)
			}
		}
		pid, live := listenerPID(s.cfg.Path)
		switch {
		case mine && !live:
			return nil
		case live && ended(pid) && time.Now().Before(end):
			<-time.After(10 * time.Millisecond)
			continue
		}
		who := ""
		if pid > 0 {
			who = fmt.Sprintf(" (pid %d)", pid)
		}
		return &Error{
			Code:    Conflict,
			Message: "weft is already running here" + who,
			Hint:    "Stop it with: weft down; or give this one its own --socket, --state and --listen",
		}
	}
}

// lockTries is how often a lock file may vanish under us because its owner ends just then.
const lockTries = 10

// takeLock opens and locks the lock file. Its owner removes it at the end, so what was locked may be a file that is no
// longer there, which keeps nobody out: only the one that has the name counts.
func (s *Server) takeLock() (bool, error) {
	for range lockTries {
		f, err := os.OpenFile(lockPath(s.cfg.Path), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return false, err
		}
		mine, err := lock(f)
		if err != nil || !mine {
			_ = f.Close()
			return false, err
		}
		locked, err1 := f.Stat()
		named, err2 := os.Stat(lockPath(s.cfg.Path))
		if err1 == nil && err2 == nil && os.SameFile(locked, named) {
			s.lock = f
			return true, nil
		}
		_ = f.Close()
	}
	return false, nil
}

// Serve answers until ctx ends, then lets answers that are on their way out and removes the socket. It is called once.
func (s *Server) Serve(ctx context.Context) error {
	// Requests outlive ctx by the grace: the answer to "stop" is one of them.
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	srv := &http.Server{
		Handler:           newHandler(s.cfg.Backend, s.cfg.Group, s.cfg.Log),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       bodyTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return requests },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if admitted, ok := c.(*admittedConn); ok {
				return withAccess(ctx, admitted.access)
			}
			return ctx
		},
	}
	var stopping sync.WaitGroup
	ended := make(chan struct{})
	stopping.Go(func() {
		select {
		case <-ctx.Done():
		case <-ended:
		}
		grace, stop := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer stop()
		if srv.Shutdown(grace) != nil {
			cancel()
			srv.Close()
		}
	})
	err := srv.Serve(newDoor(s.listener, s.gid))
	close(ended)
	stopping.Wait()
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve control socket: %w", err)
	}
	return nil
}

// Close gives the socket up: from now on another daemon may start, and Client.Gone returns. So a daemon closes its
// Server last, also when it was never served. Close may be called twice.
func (s *Server) Close() error {
	var err error
	s.close.Do(func() {
		err = s.listener.Close() // also removes the socket, while the lock still keeps others from making theirs
		if errors.Is(err, net.ErrClosed) {
			err = nil
		}
		err = errors.Join(err, s.unlock())
	})
	return err
}

// unlock removes the lock file and then lets the lock go, in this order: see takeLock.
func (s *Server) unlock() error {
	if s.lock == nil {
		return nil
	}
	err := os.Remove(lockPath(s.cfg.Path))
	if errors.Is(err, fs.ErrNotExist) { // somebody has tidied up
		err = nil
	}
	return errors.Join(err, s.lock.Close())
}

// Serve is Listen, Server.Serve and Close, for callers that have nothing to do before, between and after: a daemon that
// has more to stop calls them one by one, or Client.Gone returns too early.
func Serve(ctx context.Context, cfg Config) error {
	s, err := Listen(cfg)
	if err != nil {
		return err
	}
	return errors.Join(s.Serve(ctx), s.Close())
}

func lockPath(socket string) string { return socket + ".lock" }

// listenerPID asks who serves the socket, if anybody does; 0: somebody whom the kernel cannot name.
func listenerPID(path string) (pid int, live bool) {
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return 0, false
	}
	defer conn.Close()
	if c, err := callerOf(conn.(*net.UnixConn)); err == nil && c.pid > 0 {
		return c.pid, true
	}
	return 0, true
}

func groupID(name string) int64 {
	g, err := user.LookupGroup(name)
	if err != nil {
		return -1
	}
	id, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil {
		return -1
	}
	return int64(id)
}

func socketError(path string, err error) error {
	e := &Error{Code: Failed, Message: "cannot serve the control socket " + path, Cause: cause(err)}
	switch {
	case errors.Is(err, fs.ErrPermission):
		e.Code, e.Hint = Denied, "weft up needs root. Try: sudo weft up"
	case len(path) > maxSocketPath:
		e.Hint = fmt.Sprintf("The path may have %d bytes at most", maxSocketPath)
	}
	return e
}

// maxSocketPath is what a sockaddr_un holds.
const maxSocketPath = 107

// cause is the innermost reason, without the words that repeat what was tried.
func cause(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err.Error()
		}
		err = next
	}
}
