package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// besideSuffix is behind the name of the control socket of a wire that is started to follow another.
const besideSuffix = ".next"

// launchRetry is how often a wire that somebody else starts is called.
const launchRetry = 5 * time.Millisecond

// launch has o.Launch start a wire behind socket, and attaches to it.
func launch(ctx context.Context, o Options, socket string) (*Client, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	if err := o.Launch(ctx, socket != o.Socket); err != nil {
		return nil, fmt.Errorf("start the wire: %w", err)
	}
	u, err := dial(ctx, socket)
	for ; err != nil && absent(err) && ctx.Err() == nil; u, err = dial(ctx, socket) {
		select {
		case <-ctx.Done():
		case <-time.After(launchRetry):
		}
	}
	if err != nil {
		return nil, fmt.Errorf("call the wire that was started: %w", err)
	}
	pid, _, err := credentials(u)
	if err != nil {
		u.Close()
		return nil, err
	}
	c := newClient(o, socket, u, pid)
	c.started = true
	if err := c.greet(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("call the wire that was started: %w", err)
	}
	o.Log.Info("started a wire", "pid", c.hello.PID, "took", time.Since(began))
	return c, nil
}

// Beside starts a wire for Replace to follow the one that runs behind o.Socket, and returns when it can be called. It is
// what the unit of the wire does when it is reloaded: the new wire lives on in the same unit, of whose main process
// systemd is told.
func Beside(o ServerOptions) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	next := o.Socket + besideSuffix
	if err := removeSocket(next); err != nil {
		return err
	}
	ln, err := bind(next)
	if err != nil {
		return fmt.Errorf("make control socket of the wire: %w", err)
	}
	defer ln.Close()
	c, err := startChild(Options{Exe: exe, Socket: o.Socket, inherit: os.Stderr}, ln)
	if err != nil {
		return fmt.Errorf("start the wire: %w", err)
	}
	return notify(fmt.Sprintf("MAINPID=%d", c.pid))
}

// notify tells systemd something (sd_notify(3)); without systemd it does nothing.
func notify(state string) error {
	path := os.Getenv(notifyEnv)
	if path == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"}) // Go knows the @ of abstract ones
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	_, err = c.Write([]byte(state))
	if err := errors.Join(err, c.Close()); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

// notifyEnv is set where systemd starts the process: nobody else starts wires there.
const notifyEnv = "NOTIFY_SOCKET"
