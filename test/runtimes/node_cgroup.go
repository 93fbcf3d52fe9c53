package runtimes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A node lives in a control group of its own in every hierarchy, below that of the test, and sees it as the root: runtimes
// cannot put anything into the machine's. The group's name tells whose it is, because unlike namespaces it does not go by
// itself when a test is killed.
const cgroupPrefix = "weft-node-"

// cgroupPatience bounds the wait for groups to be empty after the last process was killed.
const cgroupPatience = time.Minute

// own lists the groups of this process, one per hierarchy.
func ownCgroups() ([]string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("find own control groups: %w", err)
	}
	var dirs []string
	for line := range strings.Lines(string(b)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, path, _ := strings.Cut(rest, ":")
		name := strings.TrimPrefix(controllers, "name=")
		if controllers == "" {
			name = "unified"
			if unified() {
				name = ""
			}
		}
		dir := filepath.Join(cgroupRoot, name, path)
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil {
			dirs = append(dirs, dir)
		}
	}
	return dirs, nil
}

const cgroupRoot = "/sys/fs/cgroup"

// unified reports whether the machine has nothing but cgroup v2.
func unified() bool {
	var st unix.Statfs_t
	return unix.Statfs(cgroupRoot, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// makeCgroups makes a node's groups.
func makeCgroups(name string) ([]string, error) {
	own, err := ownCgroups()
	if err != nil {
		return nil, err
	}
	var made []string
	for _, parent := range own {
		dir := filepath.Join(parent, fmt.Sprintf("%s%d-%s", cgroupPrefix, os.Getpid(), name))
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return made, errors.Join(fmt.Errorf("make control group: %w", err), removeCgroups(made))
		}
		made = append(made, dir)
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} { // v1 takes no process before these are set
			if v, err := os.ReadFile(filepath.Join(parent, f)); err == nil {
				_ = os.WriteFile(filepath.Join(dir, f), v, 0o644)
			}
		}
	}
	return made, nil
}

// joinCgroups moves this process.
func joinCgroups(dirs []string) error {
	for _, dir := range dirs {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
			return fmt.Errorf("join control group: %w", err)
		}
	}
	return nil
}

// removeCgroups removes groups and all below them, once their processes have gone.
func removeCgroups(dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		for deadline := time.Now().Add(cgroupPatience); ; {
			err := removeCgroup(dir)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				errs = append(errs, err)
				break
			}
			<-time.After(pollEvery)
		}
	}
	return errors.Join(errs...)
}

func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list control group: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove control group %s: %w", dir, err)
	}
	return nil
}

// sweepCgroups removes the groups of tests that were killed.
func sweepCgroups() error {
	own, err := ownCgroups()
	if err != nil {
		return err
	}
	for _, parent := range own {
		found, err := filepath.Glob(filepath.Join(parent, cgroupPrefix+"*"))
		if err != nil {
			return err
		}
		for _, dir := range found {
			owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), cgroupPrefix), "-")
			pid, err := strconv.Atoi(owner)
			if err != nil || unix.Kill(pid, 0) == nil {
				continue
			}
			_ = removeCgroup(dir) // where a process still ends in it, the next one sweeps
		}
	}
	return nil
}

// mountCgroups gives the node its view of its groups.
func mountCgroups() error {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	lines := strings.Fields(string(b))
	if len(lines) == 1 {
		return mountUnified()
	}
	if err := mount("tmpfs", cgroupRoot, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, line := range lines {
		_, rest, _ := strings.Cut(line, ":")
		controllers, _, _ := strings.Cut(rest, ":")
		dir := filepath.Join(cgroupRoot, strings.TrimPrefix(controllers, "name="))
		kind, options := "cgroup", controllers
		switch {
		case controllers == "":
			dir, kind, options = filepath.Join(cgroupRoot, "unified"), "cgroup2", ""
		case strings.HasPrefix(controllers, "name="):
			options = "none," + controllers
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := mount("cgroup", dir, kind, 0, options); err != nil {
			return err
		}
	}
	return nil
}

// mountUnified also moves pid 1 into a leaf: a group that hands controllers down may hold no processes itself.
func mountUnified() error {
	if err := mount("cgroup", cgroupRoot, "cgroup2", 0, ""); err != nil {
		return err
	}
	leaf := filepath.Join(cgroupRoot, "init")
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0o644); err != nil {
		return fmt.Errorf("move pid 1 to a leaf: %w", err)
	}
	controllers, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for c := range strings.FieldsSeq(string(controllers)) {
		// One that cannot be handed down (it is in use elsewhere) is one that runtimes here do without.
		_ = os.WriteFile(filepath.Join(cgroupRoot, "cgroup.subtree_control"), []byte("+"+c), 0o644)
	}
	return nil
}
