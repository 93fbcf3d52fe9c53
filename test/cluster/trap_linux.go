package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/test/netlab"
)

// Trap kills a daemon at a point of its work that is exactly known: before the n-th of the system calls by which it makes
// something last (a file renamed into place, a database synced) or tells the kernel of something (a netlink message). The
// kernel stops the daemon there and asks us (seccomp's user notification); the program under test knows nothing of it and
// holds no switch for it.
//
//	test                                   trapped program
//	Machine.Trap ──── start ─────────────> this same binary: SpringTrap sets the filter, passes its
//	     <──────────── listener (fd) ───── descriptor, and executes weft in its own place
//	loop: "about to call fdatasync" <───── stops
//	     ───── go on, or kill ───────────>
//
// A child of the daemon inherits the filter, and is always told to go on.
type Trap struct {
	machine  *Machine
	listener *os.File // where the kernel asks

	mu    sync.Mutex // guards all below
	armed bool
	left  int // points until the kill
	kinds []int32
	hit   bool
}

// The kinds of points.
var (
	Durable = []int32{unix.SYS_RENAMEAT, unix.SYS_FDATASYNC}
	Written = append([]int32{unix.SYS_FSYNC}, Durable...) // files before they are renamed, and what is added to a file, too
	Netlink = []int32{unix.SYS_SENDTO, unix.SYS_SENDMSG}
)

// trapEnv tells a test binary to be a trap's first half; its value is the socket to pass the listener through.
const trapEnv = "WEFT_TRAP_SOCKET"

// SpringTrap must be called first of all in the TestMain of a package that uses Trap. It does nothing unless this process
// was started to become a trapped program, and then it does not return.
func SpringTrap() {
	path := os.Getenv(trapEnv)
	if path == "" {
		return
	}
	_ = os.Unsetenv(trapEnv)
	err := springTrap(path, os.Args[1:])
	fmt.Fprintln(os.Stderr, "trap:", err)
	os.Exit(1) //nolint:forbidigo // this process was to become another program and cannot be a test instead
}

func springTrap(path string, argv []string) error {
	runtime.LockOSThread()                                                             // the filter is the thread's, and execve keeps it
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}} // seccomp_data.nr
	calls := append(append([]int32{}, Written...), Netlink...)
	for i, nr := range calls {
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(nr), Jt: uint8(len(calls) - i)})
	}
	filter = append(filter,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}

	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	f, err := conn.File()
	if err != nil {
		return err
	}
	// The descriptor of the listener must be passed by a call that is not filtered. The number that it will get is not known
	// before, so the other side takes it out of this process: see Machine.Trap.
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER,
		uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("set filter: %w", errno)
	}
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], uint32(fd))
	if _, err := unix.Write(int(f.Fd()), b[:]); err != nil {
		return err
	}
	if _, err := unix.Read(int(f.Fd()), b[:1]); err != nil { // the other side has it
		return err
	}
	_ = unix.Close(int(fd))
	return unix.Exec(argv[0], argv, os.Environ())
}

// Trap starts the daemon with `weft up` and lets it die before the n-th point of these kinds, the first being 1; 0 is never.
func (m *Machine) Trap(n int, kinds []int32, args ...string) (*Trap, error) {
	t := &Trap{machine: m}
	t.Arm(n, kinds)
	path := filepath.Join(m.Dir(), "trap.sock")
	_ = os.Remove(path)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("trap on %s: %w", m, err)
	}
	defer ln.Close()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	m.Daemon = m.Command(self, append([]string{m.Weft}, m.upArgs(args)...)...).Env(trapEnv + "=" + path)
	if err := m.Daemon.Start(); err != nil {
		return nil, err
	}
	if err := ln.SetDeadline(time.Now().Add(netlab.Patience(startTimeout))); err != nil {
		return nil, fmt.Errorf("trap on %s: %w", m, err)
	}
	conn, err := ln.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("trap on %s: %w", m, err)
	}
	defer conn.Close()
	var b [4]byte
	if _, err := conn.Read(b[:]); err != nil {
		return nil, fmt.Errorf("trap on %s: no filter: %w\n%s", m, err, m.Daemon.Stderr())
	}
	pidfd, err := unix.PidfdOpen(m.Daemon.Pid(), 0)
	if err != nil {
		return nil, fmt.Errorf("trap on %s: %w", m, err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, int(binary.NativeEndian.Uint32(b[:])), 0)
	if err != nil {
		return nil, fmt.Errorf("trap on %s: take listener: %w", m, err)
	}
	t.listener = os.NewFile(uintptr(fd), "trap of "+m.Name())
	go t.serve() // ends with the last process that has the filter, which the lab kills
	if _, err := conn.Write([]byte{1}); err != nil {
		return nil, fmt.Errorf("trap on %s: %w", m, err)
	}
	return t, nil
}

// Arm lets the daemon die before the n-th point of these kinds from now on.
func (t *Trap) Arm(n int, kinds []int32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.armed, t.left, t.kinds = n > 0, n, kinds
}

// Disarm reports whether the daemon was killed; if not, it will not be.
func (t *Trap) Disarm() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.armed = false
	return t.hit
}

// seccompNotif and seccompResp are the kernel's structures.
type seccompNotif struct {
	id    uint64
	pid   uint32 // the thread's
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

type seccompResp struct {
	id    uint64
	val   int64
	err   int32
	flags uint32
}

// serve answers the kernel until no process has the filter any more.
func (t *Trap) serve() {
	fd := int(t.listener.Fd())
	defer func() { _ = t.listener.Close() }() // nobody is left to be told
	for {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			if poll[0].Revents&unix.POLLHUP != 0 {
				return
			}
			continue
		}
		var n seccompNotif
		if err := notify(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); err != nil {
			if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) { // ENOENT: the thread died meanwhile
				continue
			}
			return
		}
		if t.fatal(n) {
			_ = syscall.Kill(t.machine.Daemon.Pid(), syscall.SIGKILL)
			continue // no answer: it never does what it was about to do
		}
		r := seccompResp{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		_ = notify(fd, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r))
	}
}

func notify(fd int, request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// fatal counts the point and reports whether it is the one.
func (t *Trap) fatal(n seccompNotif) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.armed || !slices.Contains(t.kinds, n.nr) || !t.isDaemon(int(n.pid)) {
		return false
	}
	t.left--
	t.hit = t.left == 0
	t.armed = !t.hit
	return t.hit
}

// isDaemon tells threads of the daemon from those of its children.
func (t *Trap) isDaemon(tid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	return err == nil && strings.Contains(string(b), fmt.Sprintf("\nTgid:\t%d\n", t.machine.Daemon.Pid()))
}
