package runtimes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A node is this same test binary, started twice:
//
//	test ── starts ──> power: joins the control groups, makes the namespaces, waits
//	                     └── pid 1: mounts, listens, starts what it is told to, reaps
//	Command ── unix socket (outside the node's mounts) ──> pid 1
//
// Everything in the node is a child of pid 1, so nobody has to enter namespaces and control groups one by one, and
// nothing outlives it.

// bootEnv makes a test binary a node; bootStage tells the two apart.
const (
	bootEnv   = "WEFT_TEST_NODE"
	bootStage = "WEFT_TEST_NODE_FIRST"
)

// spec is what a node is made of.
type spec struct {
	Name    string
	Disk    string // folder outside
	Socket  string // where pid 1 listens, outside
	Cgroups []string
}

// layered are the folders of the machine that a node sees and changes for itself only. plain are on the node's disk alone:
// runtimes keep images in layers of their own, and layers do not go on layers.
var (
	layered = []string{"/etc", "/opt", "/root", "/usr/local", "/var"}
	plain   = []string{
		"/tmp", "/var/lib/containerd", "/var/lib/docker", "/var/lib/containers", "/var/lib/cni", "/var/lib/kubelet", "/var/lib/weft", "/var/log",
	}
	fresh = []string{"/run", "/dev/shm"} // gone with the power
)

// path is where programs are looked for in a node: what a test installs first.
const nodePath = "/opt/weft/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// BeNode must be called first of all in the TestMain of a package that makes nodes. It does nothing unless this process was
// started to be a part of one, and then it does not return.
func BeNode() {
	text := os.Getenv(bootEnv)
	if text == "" {
		return
	}
	var s spec
	err := json.Unmarshal([]byte(text), &s)
	if err == nil {
		if os.Getenv(bootStage) == "" {
			err = bePower(s, text)
		} else {
			err = bePID1(s)
		}
	}
	fmt.Fprintln(os.Stderr, "node:", err)
	os.Exit(1) //nolint:forbidigo // this process was to be a node and cannot be a test instead
}

// bePower holds pid 1 and ends with it.
func bePower(s spec, text string) error {
	if err := joinCgroups(s.Cgroups); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // a child dies with the thread that made it
	c := exec.Command(self)
	c.Env = append(os.Environ(), bootEnv+"="+text, bootStage+"=1")
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL, Setsid: true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWCGROUP,
	}
	if err := c.Run(); err != nil {
		return fmt.Errorf("pid 1 of %s: %w", s.Name, err)
	}
	return nil
}

// bePID1 never ends by itself.
func bePID1(s spec) error {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP, unix.SIGINT, unix.SIGTERM)
	early := s.Socket + ".early" // the name that is dialled appears when all is in place
	door, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: early, Net: "unixpacket"})
	if err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(s.Socket)) // /run is about to be covered
	if err != nil {
		return err
	}
	if err := furnish(s); err != nil {
		return fmt.Errorf("furnish %s: %w", s.Name, err)
	}
	os.Clearenv()
	for _, kv := range [][2]string{{"PATH", nodePath}, {"HOME", "/root"}, {"NODE", s.Name}} {
		if err := os.Setenv(kv[0], kv[1]); err != nil {
			return err
		}
	}
	dir := int(folder.Fd())
	if err := unix.Renameat(dir, filepath.Base(early), dir, filepath.Base(s.Socket)); err != nil {
		return fmt.Errorf("open the door: %w", err)
	}
	p := &pid1{children: make(map[int]chan syscall.WaitStatus)}
	go p.reap(ended)
	for {
		conn, err := door.AcceptUnix()
		if err != nil {
			return err
		}
		go p.serve(conn)
	}
}

// furnish makes the node's own view of files. The lower layers are the machine's, which are never written to.
func furnish(s spec) error {
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return err
		}
	}
	if err := mountCgroups(); err != nil {
		return err
	}
	for _, dir := range layered {
		if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
			continue
		}
		upper, work := filepath.Join(s.Disk, "layer", dir), filepath.Join(s.Disk, "work", dir)
		if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
			return err
		}
		if err := mount("overlay", dir, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work)); err != nil {
			return err
		}
	}
	for _, dir := range plain {
		own := filepath.Join(s.Disk, "plain", dir)
		if err := errors.Join(os.MkdirAll(own, 0o755), os.MkdirAll(dir, 0o755)); err != nil {
			return err
		}
		if err := mount(own, dir, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	for _, dir := range fresh {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Mkdir("/run/lock", 0o755), os.Mkdir("/run/netns", 0o755), os.Chmod("/tmp", 0o777|fs.ModeSticky)); err != nil {
		return err
	}
	// Shared as systemd has it: a runtime's mounts reach the containers that ask for them.
	if err := mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return unix.Sethostname([]byte(s.Name))
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// request is one packet to pid 1. The first of a connection starts a process, with three files for its input and output;
// the others send it signals. A connection that ends takes its process with it.
type request struct {
	Argv, Env []string
	Dir       string
	Signal    int
}

// answer is one packet from pid 1: started (or not), then ended.
type answer struct {
	PID    int
	Err    string
	Ended  bool
	Code   int
	Signal int
}

// maxPacket bounds a request.
const maxPacket = 128 << 10

// pid1 starts and reaps.
type pid1 struct {
	mu       sync.Mutex // held over a fork, so that nobody is reaped before it is known
	children map[int]chan syscall.WaitStatus
}

// reap collects every dead process of the node: those that were asked for and the orphans.
func (p *pid1) reap(ended <-chan os.Signal) {
	for range ended {
		for {
			var ws syscall.WaitStatus
			p.mu.Lock()
			pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
			if c := p.children[pid]; err == nil && c != nil {
				delete(p.children, pid)
				c <- ws
			}
			p.mu.Unlock()
			if err != nil || pid <= 0 {
				break
			}
		}
	}
}

func (p *pid1) serve(conn *net.UnixConn) {
	defer conn.Close()
	req, files, err := receive(conn)
	if err != nil || len(req.Argv) == 0 {
		return // somebody who only looked whether pid 1 answers
	}
	pid, ended, err := p.start(req, files)
	for _, fd := range files {
		_ = unix.Close(int(fd))
	}
	if err != nil {
		send(conn, answer{Err: err.Error()})
		return
	}
	send(conn, answer{PID: pid})
	gone := make(chan struct{})
	go func() {
		for {
			r, _, err := receive(conn)
			if err != nil {
				r.Signal = int(unix.SIGKILL)
			}
			p.signal(pid, r.Signal)
			if err != nil {
				close(gone)
				return
			}
		}
	}()
	ws := <-ended
	a := answer{PID: pid, Ended: true, Code: ws.ExitStatus()}
	if ws.Signaled() {
		a.Signal = int(ws.Signal())
	}
	send(conn, a)
	_ = conn.CloseRead()
	<-gone
}

// signal reaches a process that has not been reaped; the number of one that has may be another's.
func (p *pid1) signal(pid, sig int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.children[pid] != nil {
		_ = unix.Kill(pid, unix.Signal(sig))
	}
}

func (p *pid1) start(req request, files []uintptr) (int, <-chan syscall.WaitStatus, error) {
	path, err := exec.LookPath(req.Argv[0])
	if err != nil {
		return 0, nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pid, err := syscall.ForkExec(path, req.Argv, &syscall.ProcAttr{
		Dir: req.Dir, Env: environment(req.Env), Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, nil, fmt.Errorf("start %s: %w", path, err)
	}
	ended := make(chan syscall.WaitStatus, 1)
	p.children[pid] = ended
	return pid, ended, nil
}

// environment is pid 1's own with more; the last one of a name counts.
func environment(more []string) []string {
	var env []string
	seen := make(map[string]bool)
	for _, kv := range slices.Backward(append(os.Environ(), more...)) {
		if name, _, _ := strings.Cut(kv, "="); !seen[name] {
			seen[name] = true
			env = append(env, kv)
		}
	}
	return env
}

func receive(conn *net.UnixConn) (r request, files []uintptr, err error) {
	b, oob := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(3*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		return r, nil, err
	}
	if n == 0 {
		return r, nil, net.ErrClosed
	}
	if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(msgs) == 1 {
		fds, err := unix.ParseUnixRights(&msgs[0])
		if err != nil {
			return r, nil, err
		}
		for _, fd := range fds {
			files = append(files, uintptr(fd))
		}
	}
	return r, files, json.Unmarshal(b[:n], &r)
}

func send(conn *net.UnixConn, a answer) {
	b, err := json.Marshal(a)
	if err == nil {
		_, _ = conn.Write(b) // whoever hung up does not want to know
	}
}
