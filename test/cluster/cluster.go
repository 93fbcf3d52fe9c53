// Package cluster runs weft on the hosts of a netlab: start, stop and kill daemons and wires, attach pods, wait for a
// state. It uses weft only as a person would, through its command line. Stories (test/e2e) and the demo share it.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/prog/control"
	"weft/test/netlab"
)

const (
	pollFirst    = 30 * time.Millisecond // between two looks, a tenth of the time waited so far, and at most
	pollLast     = 250 * time.Millisecond
	startTimeout = 2 * time.Minute // for a daemon to come up, and for a cluster to be complete
	stopTimeout  = time.Minute
)

// Programs are the built programs, by path.
type Programs struct {
	Weft  string
	Probe string // labprobe
}

// Machine is a host with a daemon, or one that had one and will have one again: state and socket stay.
type Machine struct {
	*netlab.Host
	Programs
	Daemon *netlab.Cmd // the last one started
	Keep   bool        // what is started survives this program
}

// On makes a machine of a host. Nothing is started.
func On(h *netlab.Host, p Programs) *Machine { return &Machine{Host: h, Programs: p} }

// State is the daemon's state directory.
func (m *Machine) State() string { return filepath.Join(m.Dir(), "state") }

// Socket is where the daemon is asked.
func (m *Machine) Socket() string { return filepath.Join(m.Dir(), "weft.sock") }

// Up starts the daemon with `weft up`.
func (m *Machine) Up(args ...string) error { return m.UpEnv(nil, args...) }

// UpEnv is Up with more environment variables.
func (m *Machine) UpEnv(env []string, args ...string) error {
	m.Daemon = m.Command(m.Weft, m.upArgs(args)...).Env(env...)
	if m.Keep {
		m.Daemon.Outlive()
	}
	return m.Daemon.Start()
}

func (m *Machine) upArgs(args []string) []string {
	return append([]string{"up", "--name", m.Name(), "--state", m.State(), "--socket", m.Socket()}, args...)
}

// Found starts the daemon as founder and returns the token of the join line that it prints.
func (m *Machine) Found(ctx context.Context, args ...string) (token string, err error) {
	if err := m.Up(append([]string{"--init"}, args...)...); err != nil {
		return "", err
	}
	if _, err := m.WaitReady(ctx, 1); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, netlab.Patience(startTimeout))
	defer cancel()
	line, err := m.Daemon.WaitOutput(ctx, `weft up --join (weft1[a-z2-7]+)`)
	if err != nil {
		return "", err
	}
	return line[1], nil
}

// Stop ends the daemon as systemd would; the wire goes on.
func (m *Machine) Stop() error { return m.Daemon.Stop(netlab.Patience(stopTimeout)) }

// Kill ends the daemon without a word, as a crash would; the wire goes on.
func (m *Machine) Kill() error {
	if err := m.Daemon.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-m.Daemon.Done()
	return nil
}

// Wire finds the process ID of the data plane; 0 while there is none.
func (m *Machine) Wire() int {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		if slices.Contains(args, "wire") && slices.Contains(args, filepath.Join(m.State(), "wire.sock")) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			return pid
		}
	}
	return 0
}

// KillWire ends the data plane as a crash would, also one that is only about to start, and waits until it is gone.
func (m *Machine) KillWire(ctx context.Context) error {
	// A process that ends lets go of its command line before its sockets; its pidfd is readable after both.
	fd := -1
	if err := Poll(ctx, func() (err error) {
		pid := m.Wire()
		if pid == 0 {
			return fmt.Errorf("no wire runs on %s", m)
		}
		if fd, err = unix.PidfdOpen(pid, 0); err != nil { // it has just ended: is there another?
			return fmt.Errorf("kill wire of %s: %w", m, err)
		}
		return nil
	}); err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill wire of %s: %w", m, err)
	}
	return Poll(ctx, func() error {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, _ := unix.Poll(poll, 0); n == 0 {
			return fmt.Errorf("the wire of %s still runs", m)
		}
		return nil
	})
}

// CLI runs a command as a person on that machine would, and returns what it printed on stdout. The error holds its
// words.
func (m *Machine) CLI(args ...string) (string, error) {
	c := m.Command(m.Weft, args...).Env("WEFT_SOCKET="+m.Socket(), "WEFT_STATE="+m.State()).Quiet()
	err := c.Run()
	return c.Stdout(), err
}

// JSON is CLI with --json, decoded.
func (m *Machine) JSON(into any, args ...string) error {
	out, err := m.CLI(append(args, "--json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("read what weft %s prints on %s: %w", strings.Join(args, " "), m, err)
	}
	return nil
}

// Status is what the daemon says of itself.
func (m *Machine) Status() (s control.Status, err error) {
	err = m.JSON(&s, "status")
	return s, err
}

// WaitFor waits until the status is as ok wants it; ok says why it is not.
func (m *Machine) WaitFor(ctx context.Context, ok func(control.Status) error) (control.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, netlab.Patience(startTimeout))
	defer cancel()
	var s control.Status
	err := Poll(ctx, func() (err error) {
		select {
		case <-m.Daemon.Done():
			return stop{fmt.Errorf("the daemon on %s ended: %w", m, errors.Join(errors.New(m.Daemon.String()), m.Daemon.Wait()))}
		default:
		}
		if s, err = m.Status(); err != nil {
			return err
		}
		return ok(s)
	})
	if err != nil {
		return s, fmt.Errorf("wait for %s: %w", m, err)
	}
	return s, nil
}

// WaitReady waits until the daemon is a member among at least so many that are alive, itself included.
func (m *Machine) WaitReady(ctx context.Context, alive int) (control.Status, error) {
	return m.WaitFor(ctx, func(s control.Status) error {
		if s.Node.State != control.NodeReady || s.Cluster.Alive < alive {
			return fmt.Errorf("state %s (%s), %d of %d members alive", s.Node.State, s.Node.Reason, s.Cluster.Alive, alive)
		}
		return nil
	})
}

// WaitTunnels waits until so many peers are reached.
func (m *Machine) WaitTunnels(ctx context.Context, peers int) (control.Status, error) {
	return m.WaitFor(ctx, func(s control.Status) error {
		up := 0
		for _, p := range s.Peers {
			if p.Path != control.PathNone {
				up++
			}
		}
		if up < peers {
			return fmt.Errorf("%d of %d tunnels up: %+v", up, peers, s.Peers)
		}
		return nil
	})
}

// Pod is a namespace and the addresses that attach gave it, IPv4 first.
type Pod struct {
	*netlab.Host
	Machine *Machine
	Addrs   []netip.Addr
}

// Attach makes a pod and connects it.
func (m *Machine) Attach(name string, args ...string) (*Pod, error) {
	p := &Pod{Host: m.Pod(name), Machine: m}
	return p, p.Attach(args...)
}

// Attach connects the pod, again if need be.
func (p *Pod) Attach(args ...string) error {
	out, err := p.Machine.CLI(append([]string{"attach", p.Path(), "--name", p.Name()}, args...)...)
	if err != nil {
		return err
	}
	p.Addrs = nil
	for line := range strings.FieldsSeq(out) {
		a, err := netip.ParseAddr(line)
		if err != nil {
			return fmt.Errorf("attach printed %q: %w", out, err)
		}
		p.Addrs = append(p.Addrs, a)
	}
	if len(p.Addrs) == 0 {
		return fmt.Errorf("attach of %s printed no address", p.Name())
	}
	return nil
}

// Detach takes the pod off.
func (p *Pod) Detach() error {
	_, err := p.Machine.CLI("detach", p.Path())
	return err
}

// Poll calls f until it returns nil or ctx ends; then the error is the last one of f. The longer it waits the more seldom it
// looks: each look of most callers is a process, and many stories that wait share one machine.
func Poll(ctx context.Context, f func() error) error {
	for began := time.Now(); ; {
		err := f()
		var final stop
		if err == nil || errors.As(err, &final) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(netlab.Patience(min(max(pollFirst, time.Since(began)/10), pollLast))):
		}
	}
}

// stop is an error that more waiting does not mend.
type stop struct{ error }

func (s stop) Unwrap() error { return s.error }
