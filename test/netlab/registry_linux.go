package netlab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// On disk a lab is a directory, locked for as long as its process lives:
//
//	/run/netlab/<lab>/ns/<host>    one empty file per namespace, made before the namespace
//	/run/netlab/<lab>/keep         stays when its process ends
//	/run/netlab/<lab>/…            scratch directories and logs of the hosts
//	/run/netns/<lab>-<host>        the namespace, where iproute2 finds it
const (
	stateDir = "/run/netlab"
	netnsDir = "/run/netns"
	nsDir    = "ns"
	keepFile = "keep"
	lockFile = ".lock" // held while labs are made or swept, so that a newborn one is not taken for dead
)

// reapTimeout bounds the wait for killed processes to be gone.
const reapTimeout = 30 * time.Second

// register takes a name and a directory for the lab.
func (l *Lab) register() error {
	unlock, err := lockRegistry()
	if err != nil {
		return err
	}
	defer unlock()
	name := l.opts.Name
	for n := 0; ; n++ {
		if l.opts.Name == "" {
			name = "nl" + strconv.Itoa(os.Getpid()) + "-" + strconv.Itoa(n)
		}
		err = os.Mkdir(filepath.Join(stateDir, name), 0o711)
		if l.opts.Name != "" || !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("open lab: one named %s stands already", name)
	}
	if err != nil {
		return fmt.Errorf("open lab: %w", err)
	}
	l.name, l.dir = name, filepath.Join(stateDir, name)
	if err := os.Mkdir(filepath.Join(l.dir, nsDir), 0o700); err != nil {
		return fmt.Errorf("open lab: %w", err)
	}
	l.lock, err = tryLock(l.dir)
	if err != nil {
		return fmt.Errorf("open lab: %w", err)
	}
	return nil
}

// Sweep removes the labs whose processes are gone and that were not meant to stay.
func Sweep() error {
	return sweep(func(dir string) bool {
		_, err := os.Lstat(filepath.Join(dir, keepFile))
		return errors.Is(err, fs.ErrNotExist)
	})
}

// Remove takes down the lab of that name, kept or not, unless a process still holds it. It reports whether there was one.
func Remove(name string) (bool, error) {
	found := false
	err := sweep(func(dir string) bool {
		match := filepath.Base(dir) == name
		found = found || match
		return match
	})
	return found, err
}

// Find reports whether a lab of that name stands, and whether a process holds it.
func Find(name string) (stands, held bool) {
	dir := filepath.Join(stateDir, name)
	f, err := tryLock(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, false
	}
	if err != nil {
		return true, true
	}
	_ = f.Close()
	return true, false
}

func sweep(doomed func(dir string) bool) error {
	unlock, err := lockRegistry()
	if err != nil {
		return err
	}
	defer unlock()
	dirs, err := os.ReadDir(stateDir)
	if err != nil {
		return fmt.Errorf("sweep labs: %w", err)
	}
	var errs []error
	for _, d := range dirs {
		dir := filepath.Join(stateDir, d.Name())
		if !d.IsDir() || !doomed(dir) {
			continue
		}
		lock, err := tryLock(dir)
		if err != nil {
			continue // alive
		}
		errs = append(errs, demolish(dir), lock.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sweep labs: %w", err)
	}
	return nil
}

// demolish kills what runs in the namespaces of a lab and removes them and its directory.
func demolish(dir string) error {
	lab := filepath.Base(dir)
	entries, err := os.ReadDir(filepath.Join(dir, nsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove lab %s: %w", lab, err)
	}
	var paths []string
	for _, e := range entries {
		paths = append(paths, filepath.Join(netnsDir, lab+"-"+e.Name()))
	}
	errs := []error{killInside(paths)}
	for _, p := range paths {
		if err := unmountNamespace(p); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, os.RemoveAll(dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove lab %s: %w", lab, err)
	}
	return nil
}

// killInside kills every process whose namespace is one of those at paths until none is left.
func killInside(paths []string) error {
	inside := make(map[uint64]bool)
	for _, p := range paths {
		if ino, ok := namespaceInode(p); ok {
			inside[ino] = true
		}
	}
	// A lab can by construction not hold the machine's own namespace; a mistake here would kill everything, so look twice.
	// (Not /proc/self, which is the first thread's, and that may be inside a host just now.)
	for _, own := range []string{"/proc/thread-self/ns/net", "/proc/1/ns/net"} {
		if ino, ok := namespaceInode(own); ok {
			delete(inside, ino)
		}
	}
	if len(inside) == 0 {
		return nil
	}
	for deadline := time.Now().Add(Patience(reapTimeout)); ; time.Sleep(2 * time.Millisecond) {
		left := 0
		procs, err := os.ReadDir("/proc")
		if err != nil {
			return fmt.Errorf("list processes: %w", err)
		}
		for _, e := range procs {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || pid == os.Getpid() {
				continue
			}
			// A zombie has no namespace left and is not counted.
			if ino, ok := namespaceInode(filepath.Join("/proc", e.Name(), "ns/net")); ok && inside[ino] {
				left++
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes survive SIGKILL", left)
		}
	}
}

// namespaceInode identifies the namespace at path; false when there is none.
func namespaceInode(path string) (uint64, bool) {
	var fsys unix.Statfs_t
	var st unix.Stat_t
	if unix.Statfs(path, &fsys) != nil || fsys.Type != unix.NSFS_MAGIC || unix.Stat(path, &st) != nil {
		return 0, false
	}
	return st.Ino, true
}

func unmountNamespace(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// lockRegistry waits for the one lock that all labs of the machine share.
func lockRegistry() (unlock func(), err error) {
	for _, dir := range []string{stateDir, netnsDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("open lab registry: %w", err)
		}
	}
	f, err := os.OpenFile(filepath.Join(stateDir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lab registry: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock lab registry: %w", err)
	}
	return func() { _ = f.Close() }, nil
}

// tryLock opens a lab's directory and locks it, or says that another process has it.
func tryLock(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}
