package runtimes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/test/netlab"
)

const (
	bootPatience = time.Minute
	killPatience = time.Minute
	pollEvery    = 10 * time.Millisecond
)

// Node is a container host on a host of the lab. Its methods may be called from any goroutine, Boot, Kill and Close from
// one at a time.
type Node struct {
	*wiring
	spec spec

	power *netlab.Cmd  // keeps pid 1 alive; nil while the node is off
	pid   int          // of pid 1, as the machine counts
	ncmd  atomic.Int64 // commands so far
}

// wiring keeps the host's methods that start processes from being taken for the node's.
type wiring struct{ host *netlab.Host }

// Host is the node's place in the lab.
func (w *wiring) Host() *netlab.Host { return w.host }

// Name is the host's name, and inside the node's hostname.
func (w *wiring) Name() string { return w.host.Name() }

// New makes a node of a host and boots it. It ends with the test. The package's TestMain must have called BeNode.
func New(tb testing.TB, h *netlab.Host) *Node {
	tb.Helper()
	n, err := Open(h)
	if err != nil {
		tb.Fatalf("make node %s: %v", h, err)
	}
	tb.Cleanup(func() {
		if err := n.Close(); err != nil {
			tb.Errorf("close node %s: %v", h, err)
		}
	})
	return n
}

// Open is New without a test; the node must be closed before its lab.
func Open(h *netlab.Host) (*Node, error) {
	if err := sweepCgroups(); err != nil {
		return nil, err
	}
	n := &Node{wiring: &wiring{h}, spec: spec{
		Name: h.Name(), Disk: filepath.Join(h.Dir(), "disk"), Socket: filepath.Join(h.Dir(), "node.sock"),
	}}
	if err := os.MkdirAll(n.spec.Disk, 0o711); err != nil {
		return nil, fmt.Errorf("make disk of %s: %w", h, err)
	}
	if err := n.Boot(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// Boot switches the node on, after Kill with the disk that it had.
func (n *Node) Boot() (err error) {
	if n.power != nil {
		return fmt.Errorf("boot %s: it is on", n.Name())
	}
	if n.spec.Cgroups, err = makeCgroups(n.host.NSName()); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	_ = os.Remove(n.spec.Socket)
	text, err := json.Marshal(n.spec)
	if err != nil {
		return err
	}
	n.power = n.host.Command(self).Env(bootEnv + "=" + string(text))
	if err := n.power.Start(); err != nil {
		return err
	}
	return n.waitBooted()
}

// waitBooted waits until pid 1 answers; from then on mounts are as they will be.
func (n *Node) waitBooted() error {
	for deadline := time.Now().Add(bootPatience); ; {
		conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: n.spec.Socket, Net: "unixpacket"})
		if err == nil {
			defer conn.Close()
			n.pid, err = peerPID(conn)
			return err
		}
		select {
		case <-n.power.Done():
			return fmt.Errorf("boot %s: %w", n.Name(), errors.Join(n.power.Wait(), err))
		case <-time.After(pollEvery):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("boot %s: %w\n%s", n.Name(), err, n.power.Stderr())
		}
	}
}

// peerPID asks the kernel who listens.
func peerPID(conn *net.UnixConn) (pid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(cerr, err); err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// PID is that of the node's first process, as the machine counts; 0 while it is off.
func (n *Node) PID() int {
	if n.power == nil {
		return 0
	}
	return n.pid
}

// Path is where the machine finds a file of the running node.
func (n *Node) Path(inside string) string {
	return filepath.Join("/proc", strconv.Itoa(n.PID()), "root", inside)
}

// Install copies a program or file of the machine into the node; it stays on the node's disk unless it lies in /run.
func (n *Node) Install(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return n.WriteFile(to, b, 0o755)
}

// WriteFile makes a file in the node, and the folders to it.
func (n *Node) WriteFile(path string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(n.Path(path)), 0o755); err != nil {
		return fmt.Errorf("write %s on %s: %w", path, n.Name(), err)
	}
	if err := os.WriteFile(n.Path(path), data, mode); err != nil {
		return fmt.Errorf("write %s on %s: %w", path, n.Name(), err)
	}
	return nil
}

// Exec runs a command inside the node to its end and returns its stdout. The error holds its stderr.
func (n *Node) Exec(ctx context.Context, name string, args ...string) (string, error) {
	c := n.Command(name, args...)
	if err := c.Start(); err != nil {
		return "", err
	}
	select {
	case <-c.Done():
	case <-ctx.Done():
		c.Kill()
		return c.Stdout(), fmt.Errorf("%s on %s: %w\n%s", c, n.Name(), ctx.Err(), netlab.Tail(c.Stderr(), 20))
	}
	return c.Stdout(), c.Wait()
}

// Kill pulls the plug: every process ends at once, and what the kernel knew (devices but the cables, filters, routes) is
// gone, as is /run. It returns when that is so.
func (n *Node) Kill() error {
	if n.power == nil {
		return nil
	}
	power := n.power
	if n.pid != 0 {
		_ = unix.Kill(n.pid, unix.SIGKILL)
	} else {
		power.Kill()
	}
	// The kernel lets pid 1 end only after everybody else in its namespace, and power waits for pid 1.
	select {
	case <-power.Done():
	case <-time.After(killPatience):
		return fmt.Errorf("kill %s: it still runs", n.Name())
	}
	n.power, n.pid = nil, 0
	n.forget()
	return removeCgroups(n.spec.Cgroups)
}

// forget removes what a kernel does not know any more after a power cut.
func (n *Node) forget() {
	cables := []string{"lo"}
	for _, l := range n.host.Lab().Links() {
		for _, p := range []netlab.Port{l.A, l.B} {
			if p.Host == n.host {
				cables = append(cables, p.Name)
			}
		}
	}
	n.host.DeleteDevices(cables...)
	n.host.DeleteTables()
	n.host.DeleteRoutes()
}

// Close is Kill for good; the disk goes with the lab.
func (n *Node) Close() error {
	if n.host.Lab().Context().Err() != nil { // the lab has killed it
		return removeCgroups(n.spec.Cgroups)
	}
	return n.Kill()
}
