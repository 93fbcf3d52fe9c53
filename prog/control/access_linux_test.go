package control

import (
	"errors"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"
)

func TestJudge(t *testing.T) {
	const weft = 990
	me := uint32(os.Geteuid())
	for name, c := range map[string]struct {
		caller caller
		group  int64
		want   access
	}{
		"root may change":                        {caller{uid: 0}, weft, accessChange},
		"the daemon's own user may change":       {caller{uid: me}, weft, accessChange},
		"a member of the group may read":         {caller{uid: 4242, groups: []uint32{100, weft}}, weft, accessRead},
		"others may not":                         {caller{uid: 4242, groups: []uint32{100}}, weft, accessNone},
		"root's group is not the group":          {caller{uid: 4242, groups: []uint32{0}}, weft, accessNone},
		"without the group nobody else may read": {caller{uid: 4242, groups: []uint32{0, 4294967295}}, -1, accessNone},
	} {
		if got := judge(c.caller, c.group); got != c.want {
			t.Errorf("%s: got %d", name, got)
		}
	}
}

// openDir is a folder that other users can look into.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "weft") //nolint:usetesting // what t.TempDir makes is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// as connects to path with other credentials: those of a thread that ends with the goroutine.
func as(t *testing.T, path string, uid, gid int, groups []uint32) net.Conn {
	t.Helper()
	var conn net.Conn
	var err error
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // never unlocked: Go throws the thread away
		// The raw calls change this thread only, unlike those of package syscall.
		var first unsafe.Pointer
		if len(groups) > 0 {
			first = unsafe.Pointer(&groups[0])
		}
		for _, call := range [][4]uintptr{
			{syscall.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first)},
			{syscall.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
			{syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
		} {
			if _, _, errno := syscall.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				err = errno
				return
			}
		}
		conn, err = net.Dial("unix", path)
	})
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestCredentialsOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	dir := openDir(t)
	const uid, gid = 4242, 4243
	many := make([]uint32, 100) // more than the first guess holds
	for i := range many {
		many[i] = uint32(5000 + i)
	}
	for name, c := range map[string]struct {
		gid    int
		groups []uint32
		want   access
	}{
		"member by supplementary group": {gid, []uint32{7, 4999}, accessRead},
		"member by primary group":       {4999, nil, accessRead},
		"member by one of many groups":  {gid, append(many, 4999), accessRead},
		"stranger":                      {gid, []uint32{7}, accessNone},
		"stranger with many groups":     {gid, many, accessNone},
	} {
		t.Run(name, func(t *testing.T) {
			path := dir + "/s"
			s, err := Listen(Config{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			// Even if somebody opens the file to all, the kernel's word about the caller counts.
			if err := os.Chmod(path, 0o666); err != nil {
				t.Fatal(err)
			}
			conn := as(t, path, uid, c.gid, c.groups)
			defer conn.Close()
			other, err := newDoor(s.listener, 4999).Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			who, err := callerOf(other.(*admittedConn).Conn.(*net.UnixConn))
			if err != nil || who.uid != uid || who.pid != os.Getpid() {
				t.Errorf("caller is %+v, %v", who, err)
			}
			ctx := withAccess(t.Context(), other.(*admittedConn).access)
			errRead, errChange := allow(ctx, accessRead, "weft"), allow(ctx, accessChange, "weft")
			if (errRead == nil) != (c.want >= accessRead) || (errChange == nil) != (c.want >= accessChange) {
				t.Errorf("read: %v; change: %v", errRead, errChange)
			}
			if !errors.Is(errChange, Denied) || !strings.Contains(errChange.Error(), "root") {
				t.Errorf("refused with %v", errChange)
			}
		})
	}
}

func TestWithoutMarkNothingIsAllowed(t *testing.T) {
	if err := allow(t.Context(), accessRead, "weft"); !errors.Is(err, Denied) {
		t.Errorf("got %v", err)
	}
}

func TestOthersCannotKeepRootOut(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	dir := openDir(t)
	path := dir + "/s"
	s, err := Listen(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	d := newDoor(s.listener, -1)
	for range maxConns {
		conn := as(t, path, 4242, 4243, nil)
		defer conn.Close()
		inside, err := d.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer inside.Close()
	}
	late := as(t, path, 4242, 4243, nil)
	defer late.Close()
	root, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	inside, err := d.Accept() // turns the one before away, without waiting for anything
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	if inside.(*admittedConn).access != accessChange {
		t.Error("root was not let in")
	}
	if n, err := late.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the one too many was let in: %v", err)
	}
}
