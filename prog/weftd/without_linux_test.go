package weftd

import (
	"errors"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// disable takes something from this process that other machines do not have. Its mounts are its own.
func disable(what string) error {
	hidden := map[string]string{"ipv6": "/proc/sys/net/ipv6", "tun": "/dev/net"}[what]
	if hidden == "" {
		return nil
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("none", hidden, "tmpfs", 0, ""); err != nil || what != "ipv6" {
		return err
	}
	return refuseIPv6()
}

// stray leaves the process's first thread in another network namespace, where any thread is while it does something in a
// pod. There it stays: Go uses no thread again whose goroutine ended with it locked.
func stray(path string) error {
	if path == "" {
		return nil
	}
	ns, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	const tries = 10_000 // until a goroutine runs on the first thread, which has nothing else to do
	for range tries {
		first, entered := make(chan bool), make(chan error, 1)
		go func() {
			runtime.LockOSThread()
			if unix.Gettid() != os.Getpid() {
				runtime.UnlockOSThread()
				first <- false
				return
			}
			entered <- unix.Setns(ns, unix.CLONE_NEWNET)
			first <- true
		}()
		if <-first {
			return <-entered
		}
	}
	return errors.New("no goroutine ran on the first thread")
}

// refuseIPv6 makes socket(2) refuse IPv6 in this process and those that it starts, as a kernel without IPv6 does.
func refuseIPv6() error {
	const (
		offNR, offArg0 = 0, 16 // of struct seccomp_data, little endian
		jeq            = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ld             = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		ret            = unix.BPF_RET | unix.BPF_K
	)
	filter := []unix.SockFilter{
		{Code: ld, K: offNR},
		{Code: jeq, Jf: 3, K: unix.SYS_SOCKET},
		{Code: ld, K: offArg0},
		{Code: jeq, Jf: 1, K: unix.AF_INET6},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return errno
	}
	return nil
}
