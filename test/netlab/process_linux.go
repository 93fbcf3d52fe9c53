package netlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pollOutput is how often WaitOutput looks.
const pollOutput = 5 * time.Millisecond

// Cmd is a process inside a host. Its output goes to files, not pipes: a grandchild that outlives it (a data plane, say)
// keeps a place to write to, and Wait does not wait for it.
type Cmd struct {
	host  *Host
	cmd   *exec.Cmd
	out   string // path of stdout
	err   string // path of stderr
	done  chan struct{}
	once  sync.Once
	wait  error
	quiet bool // left out of dumps
	keep  bool // survives the program that started it
}

// Command prepares a process; set more with Env and In before Start. It dies with the lab or, at the latest, with the
// program that holds the lab.
func (h *Host) Command(name string, args ...string) *Cmd {
	c := exec.Command(name, args...)
	c.Dir = h.Dir()
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	h.mu.Lock()
	h.ncmd++
	n := h.ncmd
	h.mu.Unlock()
	base := filepath.Join(h.Dir(), fmt.Sprintf("%03d-%s", n, filepath.Base(name)))
	return &Cmd{host: h, cmd: c, out: base + ".out", err: base + ".err", done: make(chan struct{})}
}

// Env adds NAME=value pairs to what the program itself has.
func (c *Cmd) Env(kv ...string) *Cmd {
	if c.cmd.Env == nil {
		c.cmd.Env = os.Environ()
	}
	c.cmd.Env = append(c.cmd.Env, kv...)
	return c
}

// In makes text the process's standard input; it is empty otherwise.
func (c *Cmd) In(text string) *Cmd { c.cmd.Stdin = strings.NewReader(text); return c }

// InDir starts it in another directory than the host's own.
func (c *Cmd) InDir(dir string) *Cmd { c.cmd.Dir = dir; return c }

// PrivateMounts gives it a mount namespace of its own. It then does not see pods that are made later.
func (c *Cmd) PrivateMounts() *Cmd { c.cmd.SysProcAttr.Unshareflags |= syscall.CLONE_NEWNS; return c }

// Quiet leaves its output out of what a failed test shows.
func (c *Cmd) Quiet() *Cmd { c.quiet = true; return c }

// Outlive lets it survive the program, for a lab that is kept.
func (c *Cmd) Outlive() *Cmd { c.cmd.SysProcAttr.Pdeathsig = 0; c.keep = true; return c }

// Start runs it inside the host.
func (c *Cmd) Start() error {
	if err := c.start(); err != nil {
		c.once.Do(func() { c.wait = err; close(c.done) })
		return fmt.Errorf("start %s on %s: %w", c, c.host.name, err)
	}
	return nil
}

func (c *Cmd) start() error {
	l := c.host.lab
	for _, f := range []struct {
		path string
		set  func(*os.File)
	}{{c.out, func(f *os.File) { c.cmd.Stdout = f }}, {c.err, func(f *os.File) { c.cmd.Stderr = f }}} {
		file, err := os.OpenFile(f.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		defer file.Close() //nolint:errcheck // the process writes to its own
		f.set(file)
	}
	l.mu.Lock()
	l.procs = append(l.procs, c)
	l.mu.Unlock()
	if err := l.fork(c.host, c.cmd.Start); err != nil {
		return err
	}
	go func() { // ends with the process, which Close kills and waits for
		err := c.cmd.Wait()
		c.once.Do(func() { c.wait = err; close(c.done) })
	}()
	return nil
}

// Wait waits for its end and returns how it ended.
func (c *Cmd) Wait() error {
	<-c.done
	if c.wait == nil {
		return nil
	}
	return fmt.Errorf("%s on %s: %w\n%s", c, c.host.name, c.wait, indent(Tail(c.Stderr(), 20)))
}

// Run is Start and Wait.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Done is closed when the process has ended.
func (c *Cmd) Done() <-chan struct{} { return c.done }

// ExitCode is the process's exit status: -1 while it runs or when a signal ended it.
func (c *Cmd) ExitCode() int {
	select {
	case <-c.done:
		if c.cmd.ProcessState != nil {
			return c.cmd.ProcessState.ExitCode()
		}
	default:
	}
	return -1
}

// Pid is its process number, 0 before Start.
func (c *Cmd) Pid() int {
	if c.cmd.Process == nil {
		return 0
	}
	return c.cmd.Process.Pid
}

// Signal sends to the process alone, not to what it started.
func (c *Cmd) Signal(sig os.Signal) error { return c.cmd.Process.Signal(sig) }

// Kill is kill -9 of the process alone, and waits for its end.
func (c *Cmd) Kill() {
	_ = c.cmd.Process.Kill()
	<-c.done
}

// Stop sends SIGTERM and waits; when patience ends it kills and says so.
func (c *Cmd) Stop(patience time.Duration) error {
	_ = c.Signal(unix.SIGTERM)
	select {
	case <-c.done:
		return nil
	case <-time.After(patience):
		c.Kill()
		return fmt.Errorf("%s on %s ignored SIGTERM for %v", c, c.host.name, patience)
	}
}

func (c *Cmd) killGroup() {
	select {
	case <-c.done:
	default:
		if c.cmd.Process != nil {
			_ = unix.Kill(-c.cmd.Process.Pid, unix.SIGKILL)
		}
	}
}

// Stdout is what it wrote so far.
func (c *Cmd) Stdout() string { b, _ := os.ReadFile(c.out); return string(b) }

// Stderr is what it wrote so far.
func (c *Cmd) Stderr() string { b, _ := os.ReadFile(c.err); return string(b) }

// WaitOutput waits until stdout or stderr matches the expression and returns the match and its groups. It gives up when
// the process has ended or ctx has.
func (c *Cmd) WaitOutput(ctx context.Context, expr string) ([]string, error) {
	re, err := regexp.Compile(expr)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(pollOutput)
	defer tick.Stop()
	for {
		ended := false
		select {
		case <-c.done:
			ended = true
		default:
		}
		for _, text := range []string{c.Stdout(), c.Stderr()} {
			if m := re.FindStringSubmatch(text); m != nil {
				return m, nil
			}
		}
		if ended {
			return nil, fmt.Errorf("%s on %s ended (%s) before it said %q:\n%s", c, c.host.name, c.state(), expr, indent(Tail(c.Stderr(), 20)))
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s on %s has not said %q: %w:\n%s", c, c.host.name, expr, ctx.Err(), indent(Tail(c.Stderr(), 20)))
		case <-tick.C:
		}
	}
}

// String is the command line.
func (c *Cmd) String() string {
	return strings.Join(append([]string{filepath.Base(c.cmd.Path)}, c.cmd.Args[1:]...), " ")
}

func (c *Cmd) state() string {
	select {
	case <-c.done:
		if c.wait != nil {
			return c.wait.Error()
		}
		return "exit status 0"
	default:
		return "running, pid " + strconv.Itoa(c.Pid())
	}
}

// Exec runs a command inside the host to its end and returns its stdout. The error holds its stderr.
func (h *Host) Exec(name string, args ...string) (string, error) {
	c := h.Command(name, args...).Quiet()
	err := c.Run()
	return c.Stdout(), err
}

// fork runs start on the thread that makes all processes of the lab, inside h. The kernel sends a child its parent-death
// signal when the thread that made it ends, so that thread must live as long as the lab.
func (l *Lab) fork(h *Host, start func() error) error {
	errc := make(chan error, 1)
	job := func(home int) {
		if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			errc <- fmt.Errorf("enter %s: %w", h.name, err)
			return
		}
		err := start()
		errc <- errors.Join(err, unix.Setns(home, unix.CLONE_NEWNET))
	}
	select {
	case <-l.ctx.Done():
		return errors.New("the lab is closed")
	case l.forks <- job:
		return <-errc
	}
}

// forkLoop serves fork until the lab closes.
func (l *Lab) forkLoop(home *os.File) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for {
		select {
		case <-l.ctx.Done():
			_ = home.Close()
			return
		case job := <-l.forks:
			job(int(home.Fd()))
		}
	}
}
