package wire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

// listenerEnv names the descriptor of a control socket that whoever started the wire has made.
const listenerEnv = "WEFT_WIRE_LISTENER"

// ServerOptions are those of the hidden subcommand "weft wire".
type ServerOptions struct {
	Socket  string       // path of the control socket
	Version string       // the program's build
	Log     *slog.Logger // nil: text on stderr, rate limited, and bounded when that is a file
}

// Main runs the wire until ctx ends, SIGTERM arrives, or its controller stops it. It gives up all privileges of the
// process for good, so nothing else can run beside it.
func Main(ctx context.Context, o ServerOptions) error {
	if err := forbidGain(); err != nil { // first: it may start over
		return err
	}
	if o.Log == nil {
		o.Log = slog.New(newLimiter(slog.NewTextHandler(newLogFile(os.Stderr), nil)))
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	owner := os.Geteuid()
	ln, err := controlSocket(ctx, o.Socket)
	if err != nil {
		return fmt.Errorf("open control socket: %w", err)
	}
	defer ln.Close()
	if err := notify("READY=1"); err != nil { // while it may; who calls now waits in the backlog
		o.Log.Warn("systemd not told", "err", err)
	}
	if err := dropPrivileges(); err != nil {
		return fmt.Errorf("give up privileges: %w", err)
	}
	s, err := newServer(o.Log, o.Version, uint32(owner))
	if err != nil {
		return err
	}
	o.Log.Info("wire runs", "pid", os.Getpid(), "build", o.Version)
	err = s.run(ctx, ln)
	// Only a wire that may still write there can remove its socket; else the next one or weftd does.
	_ = os.Remove(o.Socket)
	if err != nil {
		o.Log.Error("wire failed", "err", err)
		return err
	}
	o.Log.Info("wire stopped")
	return nil
}

// controlSocket takes the socket that was inherited, or makes one.
func controlSocket(ctx context.Context, path string) (*net.UnixListener, error) {
	v, ok := os.LookupEnv(listenerEnv)
	if !ok {
		closeInherited(-1)
		if os.Getenv(notifyEnv) == "" { // else whoever holds the lock waits for systemd, and that for this process
			unlock, err := lock(ctx, path+".lock")
			if err != nil {
				return nil, err
			}
			defer unlock()
		}
		if err := removeSocket(path); err != nil {
			return nil, err
		}
		return bind(path)
	}
	_ = os.Unsetenv(listenerEnv)
	fd, err := strconv.Atoi(v)
	if err != nil || fd < 3 {
		return nil, fmt.Errorf("read %s: %q is no descriptor", listenerEnv, v)
	}
	closeInherited(fd)
	f := os.NewFile(uintptr(fd), "control")
	defer f.Close() //nolint:errcheck // the listener has its own
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	u, ok := ln.(*net.UnixListener)
	if !ok {
		ln.Close()
		return nil, errors.New("the inherited socket is not a unix socket")
	}
	u.SetUnlinkOnClose(false)
	if err := sign(u); err != nil {
		ln.Close()
		return nil, fmt.Errorf("listen: %w", err)
	}
	return u, nil
}
