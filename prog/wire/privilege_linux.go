package wire

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nobody is the user and group that a wire started by root becomes.
const nobody = 65534

// niceness is the scheduling priority of a wire started by root: packets of a busy host should not wait behind the pods
// that make it busy.
const niceness = -10

// raisePriority gives all threads the priority; later ones inherit it. Where that is not allowed the wire runs as others
// do.
func raisePriority() {
	tasks, _ := filepath.Glob("/proc/self/task/*")
	for _, task := range tasks {
		if id, err := strconv.Atoi(filepath.Base(task)); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, id, niceness)
		}
	}
}

// dropPrivileges leaves this process nothing but its descriptors: no uid of root, no capability, no way to regain one,
// no core file, and memory that others of the same uid cannot read. All threads are checked afterwards, since a single
// one that kept its rights would give them to whoever takes the process over.
func dropPrivileges() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	if os.Geteuid() == 0 {
		raisePriority()
		for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
			// Best effort: without the right to regain anything the bounding set guards nothing any more.
			_, _, _ = syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0, 0)
		}
		if err := syscall.Setgroups(nil); err != nil {
			return fmt.Errorf("drop groups: %w", err)
		}
		if err := syscall.Setresgid(nobody, nobody, nobody); err != nil {
			return fmt.Errorf("change group: %w", err)
		}
		if err := syscall.Setresuid(nobody, nobody, nobody); err != nil {
			return fmt.Errorf("change user: %w", err)
		}
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET,
		uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&none)), 0)
	if errno != 0 && errno != unix.ENOTSUP { // with cgo the check below decides
		return fmt.Errorf("drop capabilities: %w", errno)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid tracing: %w", err)
	}
	return checkThreads()
}

// forbidGain sets no_new_privs on every thread. A program linked with cgo cannot reach its other threads; unless it was
// started that way (see startChild), it sets the flag on one thread and executes itself anew from there.
func forbidGain() error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	if errno == 0 {
		return nil
	}
	if errno != unix.ENOTSUP {
		return fmt.Errorf("forbid gaining privileges: %w", errno)
	}
	if on, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || on == 1 {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid gaining privileges: %w", err)
	}
	if err := unix.Exec("/proc/self/exe", os.Args, os.Environ()); err != nil {
		return fmt.Errorf("execute myself without the right to gain privileges: %w", err)
	}
	return nil
}

// checkThreads reads from /proc what every thread still may.
func checkThreads() error {
	files, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(files) == 0 {
		return errors.New("check privileges: cannot list threads in /proc")
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) { // the thread ended
			continue
		}
		if err != nil {
			return fmt.Errorf("check privileges: %w", err)
		}
		if err := checkStatus(b); err != nil {
			return fmt.Errorf("check privileges: %w", err)
		}
	}
	return nil
}

// checkStatus refuses the content of a status file that shows any privilege.
func checkStatus(b []byte) error {
	seen := 0
	for line := range bytes.Lines(b) {
		name, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(":"))
		words := bytes.Fields(value)
		switch string(name) {
		case "Uid", "Gid":
			for _, w := range words {
				if string(w) == "0" {
					return fmt.Errorf("a thread still has %s", bytes.TrimSpace(line))
				}
			}
		case "CapInh", "CapPrm", "CapEff", "CapAmb":
			if v, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64); err != nil || v != 0 {
				return fmt.Errorf("a thread still has %s", bytes.TrimSpace(line))
			}
		case "NoNewPrivs":
			if string(bytes.TrimSpace(value)) != "1" {
				return fmt.Errorf("a thread still has %s", bytes.TrimSpace(line))
			}
		default:
			continue
		}
		seen++
	}
	if seen < 6 {
		return errors.New("the kernel does not tell the privileges of a thread")
	}
	return nil
}
