package wire

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/crypto/psk"
	"weft/crypto/tlv"
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
	dir, err := os.MkdirTemp("", "wire")
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
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
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

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
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
	case <-time.After(10 * time.Second):
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
			{ID: peer.ID{2}, NoisePublic: [32]byte{9}, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")},
				Secrets: []psk.Secret{testSecret(t, 7)}},
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
	o.Timeout = 10 * time.Second
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := Ensure(short, o); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("attached to a stopped process: %v", err)
	}
	if !processExists(pid) {
		t.Error("an impatient caller killed a wire")
	}
	o.Timeout = time.Second
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

func TestPrivilegesAreGone(t *testing.T) {
	o := testOptions(t)
	o.Env = []string{"GOTRACEBACK=single"}
	t.Setenv("WEFT_TOKEN", "weft1verysecret")
	c := mustEnsure(t, o)
	push(t, c)
	proc := fmt.Sprintf("/proc/%d/", c.Hello().PID)
	tasks, err := filepath.Glob(proc + "task/*/status")
	if err != nil || len(tasks) == 0 {
		t.Fatalf("no threads: %v", err)
	}
	for _, file := range tasks {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // the thread ended
		}
		want := []string{"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
			"CapAmb:\t0000000000000000", "NoNewPrivs:\t1"}
		if os.Geteuid() == 0 {
			want = append(want, "Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "Groups:\t \n")
		}
		for _, w := range want {
			if !bytes.Contains(b, []byte(w)) {
				t.Errorf("no %q in %s:\n%s", w, file, b)
			}
		}
	}
	if b, err := os.ReadFile(proc + "limits"); err != nil ||
		!slices.Equal(strings.Fields(lineWith(string(b), "Max core file size"))[4:6], []string{"0", "0"}) {
		t.Errorf("core files are allowed: %v\n%s", err, b)
	}
	if b, err := os.ReadFile(proc + "cmdline"); err != nil || string(b) != "weft\x00wire\x00"+o.Socket+"\x00" {
		t.Errorf("command line is %q, %v", b, err)
	}
	if b, err := os.ReadFile(proc + "environ"); err != nil || string(b) != "GOTRACEBACK=single\x00"+listenerEnv+"=3\x00" {
		t.Errorf("environment is %q, %v", b, err)
	}
	if dir, err := os.Readlink(proc + "cwd"); err != nil || dir != "/" {
		t.Errorf("works in %q, %v", dir, err)
	}
}

func lineWith(s, part string) string {
	for line := range strings.Lines(s) {
		if strings.Contains(line, part) {
			return line
		}
	}
	return ""
}

func TestOtherUsersAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	o := testOptions(t)
	c := mustEnsure(t, o)
	if err := errors.Join(os.Chmod(filepath.Dir(o.Socket), 0o755), os.Chmod(o.Socket, 0o666)); err != nil {
		t.Fatal(err)
	}
	for _, uid := range []uintptr{1000, nobody} {
		answer := make(chan error)
		go func() { // the thread becomes the other user and ends with this goroutine
			runtime.LockOSThread()
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
				answer <- errno
				return
			}
			u, err := dial(t.Context(), o.Socket)
			if err != nil {
				answer <- fmt.Errorf("dial: %w", err)
				return
			}
			defer u.Close()
			hello := appendHelloRequest(nil, "intruder")
			_, _ = u.Write(append(appendHeader(nil, header{size: len(hello), version: protocol, kind: kindHello, id: 1}), hello...))
			_ = u.SetReadDeadline(time.Now().Add(10 * time.Second))
			if n, err := u.Read(make([]byte, 100)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				answer <- fmt.Errorf("got %d bytes, %v", n, err)
				return
			}
			answer <- nil
		}()
		if err := <-answer; err != nil {
			t.Errorf("user %d: %v", uid, err)
		}
	}
	s, err := c.Stats(t.Context())
	if err != nil || s.Counters.Refused < 2 {
		t.Errorf("stats %+v, %v", s.Counters, err)
	}
}

func TestMalformedFramesEndOnlyTheirConnection(t *testing.T) {
	o := testOptions(t)
	c := mustEnsure(t, o)
	hello := appendHelloRequest(nil, "")
	greeting := append(appendHeader(nil, header{size: len(hello), version: protocol, kind: kindHello, id: 1}), hello...)
	frame := func(h header, body ...byte) []byte {
		h.version, h.size = protocol, max(h.size, len(body))
		return append(appendHeader(nil, h), body...)
	}
	for name, b := range map[string][]byte{
		"nothing":                 {},
		"noise":                   bytes.Repeat([]byte{0xa5}, 100),
		"huge greeting":           frame(header{size: maxGreeting + 1, kind: kindHello}),
		"stats before hello":      frame(header{kind: kindStats, id: 1}),
		"bad hello":               frame(header{kind: kindHello, id: 1}, 1, 2, 3),
		"huge frame":              slices.Concat(greeting, frame(header{size: maxBody + 1, kind: kindPeers})),
		"absent descriptors":      slices.Concat(greeting, frame(header{files: 3, kind: kindUDP, id: 2})),
		"too many descriptors":    slices.Concat(greeting, frame(header{files: 255, kind: kindUDP, id: 2})),
		"hello with a descriptor": frame(header{files: 1, kind: kindHello, id: 1}),
	} {
		u, err := dial(t.Context(), o.Socket)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := u.Write(b); err != nil && !errors.Is(err, unix.EPIPE) {
			t.Errorf("%s: %v", name, err)
		}
		_ = u.CloseWrite()
		_ = u.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := bufio.NewReader(u).WriteTo(discard{}); err != nil && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: %v", name, err)
		}
		u.Close()
	}
	again := mustEnsure(t, o)
	if again.Started() || again.Hello().PID != c.Hello().PID {
		t.Error("the wire did not survive")
	}
	// A body that cannot be read is answered and costs nothing.
	for k, body := range map[kind][]byte{kindPeers: {1}, kindTUN: {2}, kindIdentity: nil, kindTunnels: {0, 1, 0, 0, 0, 1, 9}} {
		if _, err := again.call(t.Context(), k, body); err == nil {
			t.Errorf("kind %d with nonsense was accepted", k)
		}
	}
	again.out.push(Datagram{Data: make([]byte, maxDatagram+1)})
	if _, err := again.call(t.Context(), 999, nil); !errors.Is(err, ErrUnsupported) {
		t.Errorf("unknown kind: %v", err)
	}
	s, err := again.Stats(t.Context())
	if err != nil || s.Counters.DatagramsFailed != 1 || s.Counters.Malformed == 0 {
		t.Errorf("%+v, %v", s.Counters, err)
	}
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

func TestAControllerOfAnotherMajorVersionMayAskForRoom(t *testing.T) {
	o := testOptions(t)
	c := mustEnsure(t, o)
	u, err := dial(t.Context(), o.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	_ = u.SetDeadline(time.Now().Add(10 * time.Second))
	other := tlv.V(protocol.Major()+1, 0)
	if _, err := u.Write(appendHeader(nil, header{version: other, kind: kindHello, id: 5})); err != nil {
		t.Fatal(err)
	}
	b := newConn(u, newQueue())
	f, err := b.next()
	if err != nil || f.kind != kindHello || f.id != 5 || f.version != protocol {
		t.Fatalf("answered %+v, %v", f.header, err)
	}
	if h, err := parseHello(f.body); err != nil || h.PID != c.Hello().PID {
		t.Fatalf("answered %+v, %v", h, err)
	}
	if _, err := u.Write(appendHeader(nil, header{version: other, kind: kindStop})); err != nil {
		t.Fatal(err)
	}
	waitDone(t, c, ErrLost)
}

func TestAWireOfAnotherMajorVersionIsReplaced(t *testing.T) {
	o := testOptions(t)
	ln, err := bind(o.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	old := make(chan error, 1)
	go func() {
		u, err := ln.AcceptUnix()
		if err != nil {
			old <- err
			return
		}
		defer u.Close()
		c := newConn(u, newQueue())
		f, err := c.next()
		if err != nil {
			old <- err
			return
		}
		_, _ = u.Write(appendHeader(nil, header{version: tlv.V(protocol.Major()+1, 3), kind: kindHello, id: f.id}))
		f, err = c.next()
		if err == nil && f.kind != kindStop {
			err = fmt.Errorf("asked for %d", f.kind)
		}
		ln.Close()
		old <- err
	}()
	c := mustEnsure(t, o)
	if !c.Started() {
		t.Error("attached to it")
	}
	if err := <-old; err != nil {
		t.Error(err)
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

func TestTCPConnectionsAreHandedOver(t *testing.T) {
	o := testOptions(t)
	c := mustEnsure(t, o)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	given := files(t, ln.(*net.TCPListener))
	if err := c.GiveTCP(t.Context(), given); err != nil {
		t.Fatal(err)
	}
	given[0].Close()
	ln.Close() // the wire goes on listening
	for i := range 20 {
		out, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		in, err := c.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if in.RemoteAddr().String() != out.LocalAddr().String() {
			t.Fatalf("accepted %v, dialled from %v", in.RemoteAddr(), out.LocalAddr())
		}
		want := fmt.Sprintf("hello %d\n", i)
		if _, err := in.Write([]byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := bufio.NewReader(out).ReadString('\n'); err != nil || got != want {
			t.Fatalf("got %q, %v", got, err)
		}
		in.Close()
		out.Close()
	}
	detach(t, c)
	refused, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer refused.Close()
	_ = refused.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := refused.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("without a controller a connection stays open: %d, %v", n, err)
	}
	again := mustEnsure(t, o)
	if got := again.Hello().Held.TCP; len(got) != 1 || got[0].String() != ln.Addr().String() {
		t.Errorf("held %v", got)
	}
	s, err := again.Stats(t.Context())
	if err != nil || s.Counters.AcceptedPassed != 20 || s.Counters.AcceptedClosed != 1 {
		t.Errorf("%+v, %v", s.Counters, err)
	}
	// An empty list takes the port away.
	if err := again.GiveTCP(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		c.Close()
		t.Error("still listening")
	}
}

func TestAttachingLeaksNoDescriptor(t *testing.T) {
	o := testOptions(t)
	c := mustEnsure(t, o)
	pid := c.Hello().PID
	listenTCP, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listenTCP.Close()
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	udpFiles, tcpFiles := files(t, udp), files(t, listenTCP.(*net.TCPListener))
	// A pair of datagram sockets stands for the queue of a TUN device.
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	queue, other := os.NewFile(uintptr(pair[0]), "queue"), os.NewFile(uintptr(pair[1]), "other")
	defer queue.Close()
	defer other.Close()
	give := func(c *Client) {
		t.Helper()
		push(t, c)
		err := errors.Join(
			c.GiveUDP(t.Context(), udpFiles),
			c.GiveTCP(t.Context(), tcpFiles),
			c.GiveTUN(t.Context(), TUN{Name: "weft-sl"}, []*os.File{queue}),
		)
		if err != nil {
			t.Fatal(err)
		}
	}
	give(c)
	generation := c.Hello().Generation
	var atFirst []string
	const rounds = 100
	quiet := o
	quiet.Log = nil
	for i := range rounds {
		again, err := Ensure(t.Context(), quiet)
		if err != nil {
			t.Fatal(err)
		}
		if i == 1 { // the one before gave everything
			atFirst, generation = descriptors(t, pid), again.Hello().Generation
		}
		give(again)
		if _, err := again.Stats(t.Context()); err != nil {
			t.Fatal(err)
		}
		if i == rounds-1 && again.Hello().Generation != generation {
			t.Errorf("generation rose from %d to %d", generation, again.Hello().Generation)
		}
		again.Close()
	}
	last := mustEnsure(t, o)
	eventually(t, "the wire has no more descriptors open than at first", func() bool {
		return len(descriptors(t, pid)) <= len(atFirst)
	})
	if h := last.Hello().Held; len(h.UDP) != 1 || len(h.TCP) != 1 || h.Queues != 1 || h.TUN.Name != "weft-sl" {
		t.Errorf("held %+v", h)
	}
	// Nothing that was given stays open in the old wire when it is replaced, nor here.
	ours := descriptors(t, os.Getpid())
	next, err := last.Replace(t.Context(), Identity{ID: peer.ID{1}})
	if err == nil {
		t.Error("replaced by a weftd that had told nothing")
	}
	give(last)
	if next, err = last.Replace(t.Context(), Identity{ID: peer.ID{1}, NoisePrivate: [32]byte{1}, Counter: 1 << 40}); err != nil {
		t.Fatal(err)
	}
	waitDone(t, last, ErrStopped)
	if next.Hello().PID == pid || processExists(pid) {
		t.Error("the old wire lives on")
	}
	if got := descriptors(t, os.Getpid()); len(got) != len(ours) {
		t.Errorf("%d descriptors here, %d before:\n%s\n%s", len(got), len(ours), got, ours)
	}
	again, err := Ensure(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	waitDone(t, next, ErrDisplaced)
	next.Close()
	if h := again.Hello(); h.PID != next.Hello().PID || len(h.Held.UDP) != 1 || len(h.Held.TCP) != 1 || h.Held.Queues != 1 {
		t.Errorf("the new wire says %+v", h)
	}
	if err := again.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// files are duplicates of sockets, closed with the test.
func files[T interface{ File() (*os.File, error) }](t testing.TB, sockets ...T) []*os.File {
	t.Helper()
	var out []*os.File
	for _, s := range sockets {
		f, err := s.File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		out = append(out, f)
	}
	return out
}

// descriptors lists what a process has open.
func descriptors(t testing.TB, pid int) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			out = append(out, e.Name()+" "+target)
		}
	}
	return out
}
