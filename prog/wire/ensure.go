package wire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"
)

// Options say where the wire is and how one is started.
type Options struct {
	Exe     string        // program to start as "weft wire"; empty: only attach to a running one
	Socket  string        // path of the control socket
	LogFile string        // the wire's stderr; empty discards it
	Env     []string      // the wire's whole environment; must hold no secret
	Version string        // our build, shown to the wire
	Timeout time.Duration // for a wire to answer; 0 is 10 s
	Log     *slog.Logger  // nil discards

	// Launch has a service manager start the wire instead of us, and returns once it can be called: behind Socket, or
	// beside the one that runs there, as Beside does. Exe must be set all the same.
	Launch func(ctx context.Context, beside bool) error

	inherit *os.File // the wire's stderr where there is no LogFile
}

const defaultTimeout = requestTimeout

// errIncompatible says that the running wire speaks another major version.
var errIncompatible = errors.New("the running wire speaks another version of the control protocol")

// errSilent says that a wire did not answer and was killed.
var errSilent = errors.New("the running wire did not answer")

// Ensure attaches to the wire behind o.Socket, displacing another weftd. It starts a wire when there is none; one of
// another major version is asked to stop first, one that does not answer within the timeout is killed first.
func Ensure(ctx context.Context, o Options) (*Client, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	unlock, err := lock(ctx, o.Socket+".lock")
	if err != nil {
		return nil, err
	}
	defer unlock()
	return ensure(ctx, o)
}

func ensure(ctx context.Context, o Options) (*Client, error) {
	c, err := attach(ctx, o)
	switch {
	case err == nil:
		o.Log.Info("took over the wire", "pid", c.hello.PID, "build", c.hello.Version)
		return c, nil
	case o.Exe == "":
		return nil, fmt.Errorf("attach to the wire behind %s: %w", o.Socket, err)
	case errors.Is(err, errIncompatible), errors.Is(err, errSilent):
		o.Log.Warn("replaced a wire", "reason", err.Error())
	case !absent(err) && !errors.Is(err, ErrLost): // lost: it was about to end; start sees to it
		return nil, fmt.Errorf("attach to the wire behind %s: %w", o.Socket, err)
	}
	return start(ctx, o, o.Socket)
}

// attach connects to a running wire and says hello.
func attach(ctx context.Context, o Options) (*Client, error) {
	u, err := dial(ctx, o.Socket)
	if err != nil {
		return nil, err
	}
	pid, _, err := credentials(u)
	if err != nil {
		u.Close()
		return nil, err
	}
	c := newClient(o, o.Socket, u, pid)
	err = c.greet(ctx)
	if err == nil {
		return c, nil
	}
	defer c.Close()
	switch {
	case o.Exe == "":
	case errors.Is(err, errIncompatible):
		if serr := c.Stop(ctx); serr != nil {
			return nil, errors.Join(err, serr)
		}
	case ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
		if kerr := kill(ctx, pid, o.Socket); kerr != nil {
			return nil, fmt.Errorf("the wire (process %d) does not answer: %w", pid, kerr)
		}
		return nil, errSilent
	}
	return nil, err
}

// greet says hello and keeps the answer.
func (c *Client) greet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	r, err := c.call(ctx, kindHello, appendHelloRequest(nil, c.o.Version))
	if err != nil {
		return err
	}
	closeFDs(r.fds)
	if r.head.version.Major() != protocol.Major() {
		return fmt.Errorf("%w (%s, this weft %s)", errIncompatible, r.head.version, protocol)
	}
	if c.hello, err = parseHello(r.body); err != nil {
		return fmt.Errorf("read the wire's hello: %w", err)
	}
	return nil
}

// start starts a wire behind socket, where none listens, and attaches to it. The socket is made here: the connection
// waits in its backlog until the wire serves it, and breaks when the wire ends before.
func start(ctx context.Context, o Options, socket string) (*Client, error) {
	if o.Launch != nil {
		return launch(ctx, o, socket)
	}
	if err := removeSocket(socket); err != nil {
		return nil, err
	}
	ln, err := bind(socket)
	if err != nil {
		return nil, fmt.Errorf("make control socket of the wire: %w", err)
	}
	defer ln.Close()
	began := time.Now()
	child, err := startChild(o, ln)
	if err != nil {
		return nil, fmt.Errorf("start the wire: %w", err)
	}
	ln.Close() // the wire's is the only one left
	u, err := dial(ctx, socket)
	if err != nil {
		return nil, child.failed("", err)
	}
	c := newClient(o, socket, u, child.pid)
	c.started = true
	if err := c.greet(ctx); err != nil {
		c.Close()
		return nil, child.failed(c.exit, err)
	}
	o.Log.Info("started a wire", "pid", c.hello.PID, "took", time.Since(began))
	return c, nil
}

func dial(ctx context.Context, path string) (*net.UnixConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// bind makes the control socket. Its file is removed by whoever may: mostly not by the wire, which has no rights.
func bind(path string) (*net.UnixListener, error) {
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

// absent reports whether a dial failed because nobody listens.
func absent(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// removeSocket removes a socket that nobody listens on, and nothing else.
func removeSocket(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("remove %s: it is no socket", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return fmt.Errorf("remove %s: a wire listens on it", path)
	}
	if !absent(err) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
