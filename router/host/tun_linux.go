package host

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	tunPath     = "/dev/net/tun"
	tunQueueLen = 1000 // packets; the kernel's own 500 drop bursts
)

// MaxTUNQueues is the most queues that a device may have here; the kernel allows 256.
const MaxTUNQueues = 16

// OpenTUN makes the TUN device name, or takes over one that a former process left: it is persistent, so it and the routes
// over it outlive their holder, and packets to it are dropped while nobody holds it. One file per queue is returned; each
// is non-blocking, so it may be given to the runtime's poller or to another process. A former holder that is still there
// keeps its queues and gets a share of the packets: end it first.
//
// With super set the kernel is asked to hand over super-packets. What it grants is in Offload; without the virtio-net
// header nothing else is on. A device with another header than wanted, or another number of queues, cannot be changed
// and is made anew, which withdraws its routes for a moment.
func (h *Host) OpenTUN(name string, queues int, super bool) (files []*os.File, off Offload, err error) {
	if queues < 1 || queues > MaxTUNQueues {
		return nil, Offload{}, fmt.Errorf("open tun %s: %d queues, want 1 to %d", name, queues, MaxTUNQueues)
	}
	err = h.Do(func() error {
		files, off, err = openTUN(name, queues, super)
		if errors.Is(err, unix.EINVAL) {
			// The device is there with other flags, or is of another kind.
			if err := h.removeTUN(name); err != nil {
				return err
			}
			files, off, err = openTUN(name, queues, super)
		}
		if super && err != nil && !errors.Is(err, unix.EBUSY) {
			plain := err
			if files, off, err = openTUN(name, queues, false); err == nil {
				off.Reason = fmt.Sprintf("the kernel refused a virtio-net header (%v)", plain)
			}
		}
		return err
	})
	if err == nil {
		err = h.tuneTUN(name, off)
	}
	if err != nil {
		for _, f := range files {
			_ = f.Close()
		}
		return nil, Offload{}, fmt.Errorf("open tun %s: %w", name, explainTUN(err))
	}
	return files, off, nil
}

// tuneTUN gives the device a queue for bursts and a bound for super-packets.
func (h *Host) tuneTUN(name string, off Offload) error {
	l, err := h.nl.LinkByName(name)
	if err != nil {
		return err
	}
	if l.Attrs().TxQLen != tunQueueLen {
		if err := h.nl.LinkSetTxQLen(l, tunQueueLen); err != nil {
			return fmt.Errorf("set queue length: %w", err)
		}
	}
	if off.TSO && l.Attrs().GSOMaxSize != MaxSuperPacket {
		if err := h.nl.LinkSetGSOMaxSize(l, MaxSuperPacket); err != nil {
			return fmt.Errorf("bound super-packets: %w", err)
		}
	}
	return nil
}

func (h *Host) removeTUN(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	l, err := h.nl.LinkByName(name)
	if err != nil {
		return nil // gone, which is what is wanted
	}
	if l.Type() != "tun" && l.Type() != "tuntap" {
		return fmt.Errorf("the name is taken by a device of kind %q", l.Type())
	}
	return h.nl.LinkDel(l)
}

func openTUN(name string, queues int, super bool) (files []*os.File, off Offload, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
			files = nil
		}
	}()
	// Several queues are asked for always, so that the number may change without making the device anew.
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE)
	if super {
		flags |= unix.IFF_VNET_HDR
	}
	for i := range queues {
		fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return files, off, err
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			_ = unix.Close(fd)
			return files, off, err
		}
		ifr.SetUint16(flags)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			_ = unix.Close(fd)
			return files, off, err
		}
		files = append(files, os.NewFile(uintptr(fd), tunPath))
		if i > 0 {
			continue
		}
		if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
			return files, off, fmt.Errorf("keep device: %w", err)
		}
		off = setOffload(fd, super)
	}
	return files, off, nil
}

// setOffload asks for what the kernel has, best first: UDP segmentation is younger than TCP's. TUN_F_TSO_ECN is never
// asked for: the kernel then cuts packets that carry congestion marks itself.
func setOffload(fd int, super bool) Offload {
	if !super {
		_ = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0) // a former holder may have left some on
		return Offload{Reason: "not asked for"}
	}
	const tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	const uso = unix.TUN_F_USO4 | unix.TUN_F_USO6
	if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso|uso) == nil {
		return Offload{VnetHdr: true, TSO: true, USO: true}
	}
	err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso)
	if err == nil {
		return Offload{VnetHdr: true, TSO: true, Reason: "this kernel has no UDP segmentation on TUN devices (since 6.2)"}
	}
	_ = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0)
	return Offload{VnetHdr: true, Reason: fmt.Sprintf("the kernel refused segmentation offloads (%v)", err)}
}

func explainTUN(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: no TUN device in this kernel or container (%w). Try: modprobe tun, or give the container "+
			"%s", ErrUnsupported, err, tunPath)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: another process holds the device", err)
	}
	return explain(err)
}
