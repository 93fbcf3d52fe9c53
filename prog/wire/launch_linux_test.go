package wire

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// supervisor starts wires as systemd does, and hears what they tell it.
type supervisor struct {
	t       *testing.T
	exe     string
	socket  string
	notices *net.UnixConn
	wires   sync.WaitGroup
}

func newSupervisor(t *testing.T, o Options) *supervisor {
	t.Helper()
	path := filepath.Join(filepath.Dir(o.Socket), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	s := &supervisor{t: t, exe: o.Exe, socket: o.Socket, notices: c}
	t.Cleanup(func() {
		s.wires.Wait()
		c.Close()
	})
	t.Setenv(notifyEnv, path)
	return s
}

func (s *supervisor) launch(_ context.Context, beside bool) error {
	if beside {
		return Beside(ServerOptions{Socket: s.socket})
	}
	cmd := exec.Command(s.exe, "wire", s.socket)
	cmd.Env = []string{notifyEnv + "=" + os.Getenv(notifyEnv)}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.wires.Go(func() { _ = cmd.Wait() }) // the test ends it
	return s.hears("READY=1")
}

// hears waits for one message.
func (s *supervisor) hears(want string) error {
	b := make([]byte, 256)
	if err := s.notices.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	n, err := s.notices.Read(b)
	if err != nil || string(b[:n]) != want {
		return fmt.Errorf("it says %q, want %q: %w", b[:n], want, err)
	}
	return nil
}

// A service manager starts the wire, also the one that follows, and is told which is the main process.
func TestAServiceManagerStartsTheWires(t *testing.T) {
	o := testOptions(t)
	s := newSupervisor(t, o)
	o.Launch, o.LogFile = s.launch, ""
	c := mustEnsure(t, o)
	if !c.Started() {
		t.Error("it is a new wire, and Started denies it")
	}
	push(t, c)
	next, err := c.Replace(t.Context(), Identity{ID: [16]byte{1}, NoisePrivate: [32]byte{1}, Epoch: 1, Counter: 1 << 40})
	if err != nil {
		t.Fatal(err)
	}
	pid := next.Hello().PID
	t.Cleanup(func() { _ = kill(context.Background(), pid, o.Socket) })
	if err := s.hears(fmt.Sprintf("MAINPID=%d", pid)); err != nil {
		t.Error(err)
	}
	waitDone(t, c, ErrStopped)
	next.Close()

	again := mustEnsure(t, o)
	if got := again.Hello().PID; got != pid {
		t.Errorf("process %d answers, and %d was to follow", got, pid)
	}
	if again.Started() {
		t.Error("it knows its identity, and Started calls it new")
	}
}

func TestALaunchThatFailsIsSaid(t *testing.T) {
	o := testOptions(t)
	o.Launch = func(context.Context, bool) error { return fmt.Errorf("the unit is masked") }
	if _, err := Ensure(t.Context(), o); err == nil || !strings.Contains(err.Error(), "start the wire: the unit is masked") {
		t.Errorf("it says %v", err)
	}
	// One that never comes ends with its time.
	o.Launch, o.Timeout = func(context.Context, bool) error { return nil }, 100*time.Millisecond
	if _, err := Ensure(t.Context(), o); err == nil || !strings.Contains(err.Error(), "call the wire that was started") {
		t.Errorf("it says %v", err)
	}
}
