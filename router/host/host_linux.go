package host

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Host is the machine as seen from one network namespace. Its methods may be called from several goroutines.
type Host struct {
	log  *slog.Logger
	ns   netns.NsHandle
	talk *talk // for pods that come and go

	mu sync.Mutex // one change at a time; guards nl
	nl *netlink.Handle

	filter filter
	gates  gates
}

// Open binds to the network namespace at path, or to that of the caller when path is empty.
func Open(path string, log *slog.Logger) (*Host, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if path == "" {
		path = "/proc/thread-self/ns/net"
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	nl, err := newHandle(ns)
	if err != nil {
		_ = ns.Close()
		return nil, err
	}
	talk, err := talkIn(ns)
	if err != nil {
		_ = nl.Close()
		_ = ns.Close()
		return nil, err
	}
	h := &Host{log: log, ns: ns, nl: nl, talk: talk}
	h.filter.init(h)
	return h, nil
}

// newHandle opens a netlink handle in ns. Dumps that the kernel had to interrupt are repeated in here, so nothing else
// has to think of them.
func newHandle(ns netns.NsHandle) (*netlink.Handle, error) {
	nl, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return nl.RetryInterrupted().DisableVFInfoCollection(), nil
}

// Close releases the sockets; it changes nothing in the kernel.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.filter.mu.Lock()
	defer h.filter.mu.Unlock()
	h.filter.hangUp()
	return errors.Join(h.nl.Close(), h.talk.close(), h.ns.Close())
}

// Do runs fn on a thread inside the host's network namespace. Sockets and files that fn opens belong to it.
func (h *Host) Do(fn func() error) error { return do(h.ns, fn) }

// Do runs fn on a thread inside the network namespace at path. It must not start goroutines that need the namespace.
func Do(path string, fn func() error) error {
	ns, err := openNetNS(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return do(ns, fn)
}

func do(ns netns.NsHandle, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		back, err := netns.Get()
		if err != nil {
			done <- fmt.Errorf("find own network namespace: %w", err)
			return
		}
		defer back.Close()
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", explain(err))
			return
		}
		returned := false
		defer func() {
			if !returned { // fn ended the goroutine, as a failed test does
				done <- errors.New("the function in the namespace did not return")
			}
		}()
		err = fn()
		returned = true
		// A thread that cannot go back stays locked and dies with this goroutine.
		if netns.Set(back) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// explain adds to a missing privilege what to do about it.
func explain(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w (needs root, or the capabilities NET_ADMIN and SYS_ADMIN)", err)
	}
	return err
}

// openNetNS opens a network namespace and makes sure that it is one.
func openNetNS(path string) (netns.NsHandle, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return netns.None(), &NetNSError{path, "there is no such namespace (has the container ended?)", err}
	}
	if err != nil {
		return netns.None(), &NetNSError{path, err.Error(), err}
	}
	defer f.Close() //nolint:errcheck // it was only read
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return netns.None(), &NetNSError{path, "this file is not a network namespace", unix.EINVAL}
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return netns.None(), fmt.Errorf("keep network namespace %s: %w", path, err)
	}
	return netns.NsHandle(fd), nil
}
