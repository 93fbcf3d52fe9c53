package wire

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPrivilegesAreGone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can look into a process that is not dumpable")
	}
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
		want := []string{
			"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
			"CapAmb:\t0000000000000000", "NoNewPrivs:\t1",
			"Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "Groups:\t \n",
		}
		for _, w := range want {
			if !bytes.Contains(b, []byte(w)) {
				t.Errorf("no %q in %s:\n%s", w, file, b)
			}
		}
	}
	if b, err := os.ReadFile(proc + "stat"); err != nil || strings.Fields(string(b[bytes.LastIndexByte(b, ')'):]))[17] != "-10" {
		t.Errorf("priority is not raised: %v\n%s", err, b)
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
			_ = u.SetReadDeadline(time.Now().Add(patience))
			if n, err := u.Read(make([]byte, 100)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				answer <- fmt.Errorf("got %d bytes, %w", n, err)
				return
			}
			answer <- nil
		}()
		if err := <-answer; err != nil {
			t.Errorf("user %d: %v", uid, err)
		}
	}
	eventually(t, "both are counted", func() bool {
		s, err := c.Stats(t.Context())
		return err == nil && s.Counters.Refused >= 2
	})
}
