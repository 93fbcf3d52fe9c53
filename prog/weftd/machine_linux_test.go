package weftd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/netlab"
)

// machine is a host of a lab on which the daemon of this build runs, or has run.
type machine struct {
	*netlab.Host
	*control.Client
	t      *testing.T
	daemon *netlab.Cmd
}

// patience is for what takes a moment on a machine that has nothing else to do.
var patience = netlab.Patience(time.Minute)

// machines makes hosts n1, n2, ... on one wire.
func machines(t *testing.T, n int) []*machine {
	t.Helper()
	t.Parallel()
	lab := netlab.New(t)
	lan := lab.Switch("lan")
	var all []*machine
	for i := range n {
		h := lab.Host(fmt.Sprintf("n%d", i+1))
		lab.Link(h.Port("eth0", fmt.Sprintf("192.0.2.%d/24", i+1), fmt.Sprintf("2001:db8::%d/64", i+1)), lan.Port(fmt.Sprintf("p%d", i+1)))
		all = append(all, machineOn(t, h))
	}
	return all
}

func machineOn(t *testing.T, h *netlab.Host) *machine {
	m := &machine{Host: h, t: t}
	m.Client = control.NewClient(m.socket())
	return m
}

func (m *machine) state() string  { return filepath.Join(m.Dir(), "state") }
func (m *machine) socket() string { return filepath.Join(m.Dir(), "s") }

// command is the daemon with settings, not started yet.
func (m *machine) command(settings ...string) *netlab.Cmd {
	return m.Command(testBinary(m.t), append([]string{"up", "name=" + m.Name(), "state=" + m.state(), "socket=" + m.socket()}, settings...)...)
}

func testBinary(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// up starts the daemon and waits until it answers.
func (m *machine) up(settings ...string) {
	m.t.Helper()
	m.start(m.command(settings...))
}

func (m *machine) start(c *netlab.Cmd) {
	m.t.Helper()
	m.daemon = c
	if err := c.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.wait("answers", func(control.Status) bool { return true })
}

// found starts the first daemon and returns its token.
func (m *machine) found(settings ...string) string {
	m.t.Helper()
	m.up(append(settings, "init=true")...)
	m.ready(1)
	line, err := m.daemon.WaitOutput(m.t.Context(), `founded (weft1\S+)`)
	if err != nil {
		m.t.Fatal(err)
	}
	return line[1]
}

// wait waits for a status.
func (m *machine) wait(what string, ok func(control.Status) bool) control.Status {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	var s control.Status
	var err error
	m.until(ctx, what, func() bool {
		s, err = m.Status(ctx)
		return err == nil && ok(s)
	})
	return s
}

func (m *machine) until(ctx context.Context, what string, ok func() bool) {
	m.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			s, err := m.Status(m.t.Context())
			m.t.Fatalf("%s: never %s: %+v %v", m.Name(), what, s, err)
		case <-m.daemon.Done():
			m.t.Fatalf("%s: ended before it %s: %v\n%s", m.Name(), what, m.daemon.Wait(), m.daemon.Stderr())
		case <-tick.C:
		}
	}
}

// ready waits until pods can be attached, and so many members are alive and reached.
func (m *machine) ready(members int) control.Status {
	m.t.Helper()
	return m.wait("ready", func(s control.Status) bool {
		reached := 0
		for _, p := range s.Peers {
			if p.Path == control.PathDirect {
				reached++
			}
		}
		return s.Node.State == control.NodeReady && s.Cluster.Alive == members && reached == members-1
	})
}

// gone waits for the daemon's end, which must be a good one.
func (m *machine) gone() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	if err := m.Gone(ctx); err != nil {
		m.t.Fatal(err)
	}
	select {
	case <-m.daemon.Done():
	case <-ctx.Done():
		m.t.Fatalf("%s: the daemon gave up its socket and did not end", m.Name())
	}
	if got := m.daemon.ExitCode(); got != 0 {
		m.t.Fatalf("%s: exit code %d\n%s", m.Name(), got, m.daemon.Stderr())
	}
}

// refused runs a daemon that must end at once, and returns its last words.
func (m *machine) refused(c *netlab.Cmd) string {
	m.t.Helper()
	if err := c.Start(); err != nil {
		m.t.Fatal(err)
	}
	select {
	case <-c.Done():
	case <-time.After(patience):
		m.t.Fatalf("it runs although it should have been refused:\n%s", c.Stderr())
	}
	lines := strings.Split(strings.TrimSpace(c.Stderr()), "\n")
	return lines[len(lines)-1]
}

// wire is the process of the data plane; 0: there is none.
func (m *machine) wire() int {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range all {
		b, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(b), "wire\x00"+m.state()+"/wire.sock") {
			return must(strconv.Atoi(strings.Split(path, "/")[2]))(m.t)
		}
	}
	return 0
}

func (m *machine) killDaemon() {
	m.t.Helper()
	if err := m.daemon.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		m.t.Fatal(err)
	}
	<-m.daemon.Done()
}
