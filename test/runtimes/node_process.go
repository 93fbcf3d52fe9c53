package runtimes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weft/test/netlab"
)

// Cmd is a process inside a node. Its output goes to files on the outside, so it can be read after a power cut.
type Cmd struct {
	node *Node
	req  request
	in   string
	out  string // path of stdout
	err  string // path of stderr

	conn *net.UnixConn
	pid  int // inside
	done chan struct{}
	once sync.Once
	end  answer
	fail error
}

// Command prepares a process; set more with Env, In and InDir before Start. It dies with the node at the latest.
func (n *Node) Command(name string, args ...string) *Cmd {
	base := filepath.Join(n.host.Dir(), fmt.Sprintf("n%03d-%s", n.ncmd.Add(1), filepath.Base(name)))
	return &Cmd{
		node: n, req: request{Argv: append([]string{name}, args...), Dir: "/"},
		out: base + ".out", err: base + ".err", done: make(chan struct{}),
	}
}

// Env adds NAME=value pairs.
func (c *Cmd) Env(kv ...string) *Cmd { c.req.Env = append(c.req.Env, kv...); return c }

// In makes text its standard input; it is empty otherwise.
func (c *Cmd) In(text string) *Cmd { c.in = text; return c }

// InDir starts it in another folder of the node than /.
func (c *Cmd) InDir(dir string) *Cmd { c.req.Dir = dir; return c }

// Start runs it.
func (c *Cmd) Start() error {
	if err := c.start(); err != nil {
		c.finish(answer{}, err)
		return fmt.Errorf("start %s on %s: %w", c, c.node.Name(), err)
	}
	return nil
}

func (c *Cmd) start() error {
	if c.node.power == nil {
		return errors.New("the node is off")
	}
	if err := os.WriteFile(c.out+".in", []byte(c.in), 0o600); err != nil {
		return err
	}
	defer os.Remove(c.out + ".in") //nolint:errcheck // the process has it open, and it goes with the lab
	var fds []int
	for _, f := range []struct {
		path  string
		flags int
	}{{c.out + ".in", os.O_RDONLY}, {c.out, os.O_CREATE | os.O_WRONLY | os.O_APPEND}, {c.err, os.O_CREATE | os.O_WRONLY | os.O_APPEND}} {
		file, err := os.OpenFile(f.path, f.flags, 0o600)
		if err != nil {
			return err
		}
		defer file.Close() //nolint:errcheck // the process writes to its own
		fds = append(fds, int(file.Fd()))
	}
	b, err := json.Marshal(c.req)
	if err != nil {
		return err
	}
	c.conn, err = net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: c.node.spec.Socket, Net: "unixpacket"})
	if err != nil {
		return err
	}
	if _, _, err := c.conn.WriteMsgUnix(b, unix.UnixRights(fds...), nil); err != nil {
		return errors.Join(err, c.conn.Close())
	}
	a, err := c.next()
	if err == nil && a.Err != "" {
		err = errors.New(a.Err)
	}
	if err != nil {
		c.conn.Close()
		return err
	}
	c.pid = a.PID
	go func() { // ends with the process, or with its node
		a, err := c.next()
		if err != nil {
			a, err = answer{Signal: int(unix.SIGKILL)}, errors.New("its node went off")
		}
		c.finish(a, err)
		c.conn.Close()
	}()
	return nil
}

func (c *Cmd) next() (a answer, err error) {
	b := make([]byte, maxPacket)
	n, err := c.conn.Read(b)
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(b[:n], &a)
}

func (c *Cmd) finish(a answer, err error) {
	c.once.Do(func() { c.end, c.fail = a, err; close(c.done) })
}

// Wait waits for its end and returns how it ended.
func (c *Cmd) Wait() error {
	<-c.done
	if c.fail == nil && c.end.Code == 0 && c.end.Signal == 0 {
		return nil
	}
	return fmt.Errorf("%s on %s: %s\n%s", c, c.node.Name(), c.state(), netlab.Tail(c.Stderr(), 20))
}

// Run is Start and Wait.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Done is closed when it has ended.
func (c *Cmd) Done() <-chan struct{} { return c.done }

// ExitCode is its exit status: -1 while it runs or when a signal ended it.
func (c *Cmd) ExitCode() int {
	select {
	case <-c.done:
		if c.fail == nil && c.end.Signal == 0 {
			return c.end.Code
		}
	default:
	}
	return -1
}

// PID is its process number inside the node.
func (c *Cmd) PID() int { return c.pid }

// Signal sends to the process alone, not to what it started.
func (c *Cmd) Signal(sig unix.Signal) error {
	b, err := json.Marshal(request{Signal: int(sig)})
	if err != nil {
		return err
	}
	_, err = c.conn.Write(b)
	return err
}

// Kill is kill -9, and waits for its end.
func (c *Cmd) Kill() {
	_ = c.Signal(unix.SIGKILL)
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
		return fmt.Errorf("%s on %s ignored SIGTERM for %v", c, c.node.Name(), patience)
	}
}

// Stdout is what it wrote so far.
func (c *Cmd) Stdout() string { b, _ := os.ReadFile(c.out); return string(b) }

// Stderr is what it wrote so far.
func (c *Cmd) Stderr() string { b, _ := os.ReadFile(c.err); return string(b) }

// WaitOutput waits until stdout or stderr matches the expression and returns the match and its groups. It gives up when the
// process has ended or ctx has.
func (c *Cmd) WaitOutput(ctx context.Context, expr string) ([]string, error) {
	re, err := regexp.Compile(expr)
	if err != nil {
		return nil, err
	}
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
			return nil, fmt.Errorf("%s on %s ended (%s) before it said %q:\n%s", c, c.node.Name(), c.state(), expr, netlab.Tail(c.Stderr(), 20))
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s on %s has not said %q: %w:\n%s", c, c.node.Name(), expr, ctx.Err(), netlab.Tail(c.Stderr(), 20))
		case <-time.After(pollEvery):
		}
	}
}

// String is the command line.
func (c *Cmd) String() string { return strings.Join(c.req.Argv, " ") }

func (c *Cmd) state() string {
	select {
	case <-c.done:
	default:
		return fmt.Sprintf("running, pid %d", c.pid)
	}
	switch {
	case c.fail != nil:
		return c.fail.Error()
	case c.end.Signal != 0:
		return unix.Signal(c.end.Signal).String()
	}
	return fmt.Sprintf("exit status %d", c.end.Code)
}
