package wire

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/crypto/psk"
	"weft/mesh/peer"
	"weft/router"
)

// testOptions are those of a wire that is this test binary, in a folder of its own with a short path.
func testOptions(t testing.TB) Options {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "wire") //nolint:usetesting // t.TempDir holds the test's name: too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		Exe: exe, Socket: filepath.Join(dir, "wire.sock"), LogFile: filepath.Join(dir, "wire.log"), Version: "test",
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(o.LogFile)
			t.Logf("log of the wire:\n%s", b)
		}
		os.RemoveAll(dir)
	})
	return o
}

// mustEnsure attaches to the wire or starts one that does not outlive the test.
func mustEnsure(t testing.TB, o Options) *Client {
	t.Helper()
	c, err := Ensure(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	pid := c.Hello().PID
	t.Cleanup(func() {
		c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := kill(ctx, pid, o.Socket); err != nil && processExists(pid) {
			t.Errorf("clean up: %v", err)
		}
	})
	return c
}

// processExists reports whether pid runs; a zombie does not.
func processExists(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(b, []byte(") "))
	return len(rest) > 0 && rest[0] != 'Z'
}

// detach closes c and waits until the wire has noticed.
func detach(t testing.TB, c *Client) {
	t.Helper()
	count := func() int {
		b, err := os.ReadFile(c.o.LogFile)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(b, []byte("controller detached"))
	}
	before := count()
	c.Close()
	eventually(t, "the wire notices that its controller left", func() bool { return count() > before })
}

// patience is for what a machine with nothing else to do does at once.
const patience = time.Minute

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain until %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func waitDone(t testing.TB, c *Client, want error) {
	t.Helper()
	select {
	case <-c.Done():
	case <-time.After(patience):
		t.Fatal("Done did not fire")
	}
	if err := c.Err(); !errors.Is(err, want) {
		t.Fatalf("ended with %v, want %v", err, want)
	}
}

// push tells the wire a state with a peer that never answers.
func push(t testing.TB, c *Client) {
	t.Helper()
	ctx := t.Context()
	err := errors.Join(
		c.SetIdentity(ctx, Identity{ID: peer.ID{1}, NoisePrivate: [32]byte{1}, Epoch: 1}),
		c.SetLocal(ctx, []netip.Prefix{netip.MustParsePrefix("10.32.0.0/26")}),
		c.SetPeers(ctx, []Peer{
			{ID: peer.ID{3}, NoisePublic: [32]byte{9: 1}},
			{
				ID: peer.ID{2}, NoisePublic: [32]byte{9}, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")},
				Secrets: []psk.Secret{testSecret(t, 7)},
			},
		}),
		c.SetTunnels(ctx, []router.Tunnel{
			{Peer: peer.ID{2}, Blocks: []netip.Prefix{netip.MustParsePrefix("10.32.0.64/26")}, MTU: 1420},
		}),
	)
	if err != nil {
		t.Fatal(err)
	}
}

func TestANewControllerTakesOver(t *testing.T) {
	o := testOptions(t)
	first := mustEnsure(t, o)
	if !first.Started() || first.Hello().Generation != 0 {
		t.Fatalf("started %v, hello %+v", first.Started(), first.Hello())
	}
	push(t, first)

	second := mustEnsure(t, o)
	waitDone(t, first, ErrDisplaced)
	h := second.Hello()
	if second.Started() || h.PID != first.Hello().PID || !h.Started.Equal(first.Hello().Started) {
		t.Fatalf("not the same wire: %+v, was %+v", h, first.Hello())
	}
	if h.Generation == 0 || h.Identity != (peer.ID{1}) || h.Version != "test" {
		t.Fatalf("the state did not survive: %+v", h)
	}

	push(t, second)
	second.Close()
	waitDone(t, second, ErrClosed)
	third := mustEnsure(t, o)
	if got := third.Hello().Generation; got != h.Generation {
		t.Errorf("the same state counted as %d changes", got-h.Generation)
	}

	if err := third.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitDone(t, third, ErrStopped)
	if processExists(h.PID) {
		t.Error("the wire lives on after Stop")
	}
	if _, err := os.Stat(o.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	if err := third.SetLocal(t.Context(), nil); !errors.Is(err, ErrStopped) {
		t.Errorf("a request after Stop: %v", err)
	}
}

func TestTheWireOutlivesAKilledController(t *testing.T) {
	o := testOptions(t)
	c := mustEnsure(t, o)
	push(t, c)
	generation := mustEnsure(t, o).Hello().Generation

	cmd := exec.Command(o.Exe, "controller", o.Socket)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "attached\n" {
		t.Fatalf("controller says %q, %v", line, err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()

	again := mustEnsure(t, o)
	if again.Started() || again.Hello().Generation != generation {
		t.Errorf("started %v, generation %d, want %d", again.Started(), again.Hello().Generation, generation)
	}
}

func TestAKilledWireIsStartedAnew(t *testing.T) {
	o := testOptions(t)
	c := mustEnsure(t, o)
	pid := c.Hello().PID
	began := time.Now()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitDone(t, c, ErrLost)
	if processExists(pid) {
		t.Error("Done fired before the process was gone")
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
		t.Error("a zombie is left")
	}
	again := mustEnsure(t, o)
	if !again.Started() || again.Hello().PID == pid {
		t.Errorf("hello %+v", again.Hello())
	}
	t.Logf("back after %v", time.Since(began))
}

func TestASilentWireIsReplaced(t *testing.T) {
	o := testOptions(t)
	pid := mustEnsure(t, o).Hello().PID
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all threads have stopped", func() bool {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		return len(tasks) > 0 && !slices.ContainsFunc(tasks, func(file string) bool {
			b, err := os.ReadFile(file)
			return err == nil && !bytes.Contains(b, []byte(") T "))
		})
	})
	o.Timeout = 300 * time.Millisecond
	attachOnly := o
	attachOnly.Exe = ""
	if _, err := Ensure(t.Context(), attachOnly); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("attached to a stopped process: %v", err)
	}
	if !processExists(pid) {
		t.Error("who may not start a wire killed one")
	}
	o.Timeout = patience
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := Ensure(short, o); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("attached to a stopped process: %v", err)
	}
	if !processExists(pid) {
		t.Error("an impatient caller killed a wire")
	}
	o.Timeout = 10 * time.Second // for the new one too
	if c := mustEnsure(t, o); c.Hello().PID == pid || processExists(pid) {
		t.Errorf("the stopped wire is still there; hello %+v", c.Hello())
	}
}

func TestSignals(t *testing.T) {
	o := testOptions(t)
	c := mustEnsure(t, o)
	pid := c.Hello().PID
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("session is %d, %v", sid, err)
	}
	if err := unix.Kill(pid, unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Stats(t.Context()); err != nil {
		t.Errorf("after SIGHUP: %v", err)
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitDone(t, c, ErrLost)
	b, err := os.ReadFile(o.LogFile)
	if err != nil || !bytes.Contains(b, []byte("wire stopped")) {
		t.Errorf("no clean stop in the log: %v\n%s", err, b)
	}
}

func TestAWireThatDoesNotStartSaysWhy(t *testing.T) {
	o := testOptions(t)
	o.Exe = "/bin/false"
	if _, err := Ensure(t.Context(), o); err == nil || !strings.Contains(err.Error(), "ended at once (exit status 1)") {
		t.Errorf("%v", err)
	}
	o.Exe = filepath.Join(t.TempDir(), "weft")
	script := "#!/bin/sh\necho the reason >&2\nexit 3\n"
	if err := os.WriteFile(o.Exe, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(t.Context(), o); err == nil || !strings.Contains(err.Error(), "exit status 3): the reason") {
		t.Errorf("%v", err)
	}
	o.Exe = filepath.Join(t.TempDir(), "absent")
	if _, err := Ensure(t.Context(), o); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	o.Exe = ""
	if _, err := Ensure(t.Context(), o); !absent(err) {
		t.Errorf("%v", err)
	}
}

// A service manager starts the wire by its command line; nobody made the socket for it.
func TestAWireThatMakesItsOwnSocket(t *testing.T) {
	o := testOptions(t)
	start := func() (cmd *exec.Cmd, output *bytes.Buffer) {
		t.Helper()
		cmd, output = exec.Command(o.Exe, "wire", o.Socket), new(bytes.Buffer)
		cmd.Stderr = output
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		return cmd, output
	}
	attachOnly := o
	attachOnly.Exe = ""
	for range 2 { // the second finds what the first may not remove any more
		cmd, _ := start()
		var c *Client
		eventually(t, "the wire listens", func() bool {
			var err error
			c, err = Ensure(t.Context(), attachOnly)
			return err == nil
		})
		if c.Hello().PID != cmd.Process.Pid {
			t.Errorf("attached to process %d, started %d", c.Hello().PID, cmd.Process.Pid)
		}
		twin, output := start()
		if err := twin.Wait(); err == nil || !strings.Contains(output.String(), "a wire listens on it") {
			t.Errorf("a second wire on one socket ended with %v:\n%s", err, output)
		}
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		waitDone(t, c, ErrLost)
		c.Close()
	}
	if c := mustEnsure(t, o); !c.Started() {
		t.Error("attached to a wire that has ended")
	}
}

func TestOnlySocketsAreRemoved(t *testing.T) {
	o := testOptions(t)
	if err := os.WriteFile(o.Socket, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(t.Context(), o); err == nil {
		t.Error("a wire behind a plain file")
	}
	if b, err := os.ReadFile(o.Socket); err != nil || string(b) != "precious" {
		t.Errorf("the file is now %q, %v", b, err)
	}
}
