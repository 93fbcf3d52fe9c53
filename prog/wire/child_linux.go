package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// exitPatience is how long a process that let go of its socket is given to end.
const exitPatience = 2 * time.Second

// child is a wire that was just started.
type child struct {
	pid  int
	log  string
	from int64 // where its lines begin in the log
}

// startChild starts "weft wire" in a session of its own with ln as its control socket.
func startChild(o Options, ln *net.UnixListener) (*child, error) {
	inherited, err := ln.File()
	if err != nil {
		return nil, err
	}
	defer inherited.Close() //nolint:errcheck // the child has its own
	cmd := exec.Command(o.Exe)
	cmd.Args = []string{"weft", "wire", o.Socket}
	cmd.Env = append(slices.Clone(o.Env), fmt.Sprintf("%s=%d", listenerEnv, 3))
	cmd.Dir = "/" // keeps no file system busy
	cmd.ExtraFiles = []*os.File{inherited}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if o.inherit != nil {
		cmd.Stderr = o.inherit
	}
	c := &child{log: o.LogFile}
	if o.LogFile != "" {
		// For reading too: the wire cuts it by itself.
		f, err := os.OpenFile(o.LogFile, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open log of the wire: %w", err)
		}
		defer f.Close() //nolint:errcheck // the child writes to its own
		if st, err := f.Stat(); err == nil {
			c.from = st.Size()
		}
		cmd.Stderr = f
	}
	// The child inherits no_new_privs from the thread that forks it; the thread ends with this goroutine, being locked.
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			result <- fmt.Errorf("forbid gaining privileges: %w", err)
			return
		}
		result <- cmd.Start()
	}()
	if err := <-result; err != nil {
		return nil, err
	}
	c.pid = cmd.Process.Pid
	_ = cmd.Process.Release() // reap waits by pid
	return c, nil
}

// failed says why a child did not answer, and leaves nothing of it. Exit is how it ended, if that is known.
func (c *child) failed(exit string, err error) error {
	if exit == "" {
		exit, _ = reap(c.pid, 0)
	}
	what := "the wire ended at once (" + exit + ")"
	if exit == "" {
		what = "the wire did not answer"
		_ = unix.Kill(c.pid, unix.SIGKILL) // still our child, so the pid is its own
		reap(c.pid, exitPatience)
	}
	if line := c.lastLine(); line != "" {
		return fmt.Errorf("%s: %s (%w)", what, line, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// lastLine is the last line that the child logged.
func (c *child) lastLine() string {
	if c.log == "" {
		return ""
	}
	f, err := os.Open(c.log)
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck // it was only read
	b := make([]byte, 8<<10)
	if st, err := f.Stat(); err == nil {
		c.from = max(c.from, st.Size()-int64(len(b)))
	}
	n, _ := f.ReadAt(b, c.from)
	lines := bytes.Split(bytes.TrimSpace(b[:n]), []byte("\n"))
	return string(lines[len(lines)-1])
}

// reap waits until the process has ended and, when it is a child of ours, collects its status.
func reap(pid int, patience time.Duration) (status string, ended bool) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return "gone", errors.Is(err, unix.ESRCH)
	}
	defer unix.Close(fd)
	return reapFD(fd, pid, patience)
}

func reapFD(fd, pid int, patience time.Duration) (status string, ended bool) {
	deadline := time.Now().Add(patience)
	for {
		left := max(0, time.Until(deadline))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return "", false
		}
		break
	}
	var ws unix.WaitStatus
	if got, err := unix.Wait4(pid, &ws, unix.WNOHANG, nil); err != nil || got != pid {
		return "ended", true // another's child
	}
	if ws.Signaled() {
		return "killed: " + ws.Signal().String(), true
	}
	return fmt.Sprintf("exit status %d", ws.ExitStatus()), true
}

// kill ends the process that listens on the control socket and does not answer. The pid alone proves nothing: its
// command line must show that it is a wire on this socket.
func kill(ctx context.Context, pid int, socket string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return fmt.Errorf("read command line of process %d: %w", pid, err)
	}
	args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
	if !slices.Contains(args, "wire") || !slices.Contains(args, socket) {
		return fmt.Errorf("process %d is no wire on %s", pid, socket)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	if _, ended := reapFD(fd, pid, exitPatience); !ended {
		return fmt.Errorf("process %d does not end", pid)
	}
	return ctx.Err()
}

// lock waits for the lock on path, which those hold who start a wire.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the wire: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("wait for another weft that starts the wire: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
