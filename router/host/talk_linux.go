package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A pod's connection is some fifteen requests. Asked one by one each is three system calls, in which the kernel's lock over
// all network devices is waited for while another thread takes over this one's work; sent together they are two, and the
// lock goes from one request to the next without leaving the processor.

const (
	talkBuffer  = 64 << 10 // for answers; the kernel never hands over more at once
	talkTimeout = 10       // seconds; answers come before the request returns, so nobody waits
)

// talk is a netlink socket to the routing part of one network namespace.
type talk struct {
	mu  sync.Mutex // held from a request to its answers; guards what follows
	fd  int
	seq uint32
	in  []byte
}

// newTalk opens a talk with the namespace that the thread is in.
func newTalk() (*talk, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", explain(err))
	}
	// An error then comes without the request that it is about; where the kernel cannot do that it is skipped all the same.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: talkTimeout})
	return &talk{fd: fd, in: make([]byte, talkBuffer)}, nil
}

func (t *talk) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return unix.Close(t.fd)
}

// talkIn opens a talk with another namespace.
func talkIn(ns netns.NsHandle) (t *talk, err error) {
	err = do(ns, func() error {
		t, err = newTalk()
		return err
	})
	return t, err
}

// refusal is the kernel's no to one request of a batch.
type refusal struct {
	request int
	kind    uint16 // of the request
	errno   unix.Errno
}

func (r *refusal) Error() string {
	what := map[uint16]string{
		unix.RTM_NEWLINK: "change link", unix.RTM_SETLINK: "mark link", unix.RTM_DELLINK: "delete link", unix.RTM_GETLINK: "find link", unix.RTM_NEWADDR: "give address", unix.RTM_GETROUTE: "list routes",
		unix.RTM_NEWNEIGH: "tell neighbour", unix.RTM_NEWROUTE: "set route", unix.RTM_DELROUTE: "remove route",
		unix.RTM_NEWQDISC: "make room for programs", unix.RTM_NEWTFILTER: "load program", unix.RTM_DELTFILTER: "remove program", unix.RTM_GETTFILTER: "list programs",
	}[r.kind]
	return what + ": " + r.errno.Error()
}

func (r *refusal) Unwrap() error { return r.errno }

// ask sends what is in the batch at once and reads all answers. The kernel goes on after a request that it refuses: the first
// such is the error, a *refusal. A dump, which may stand last only, that changes interrupted is refused with EINTR. answer is
// given each piece of data with the number of its request; the bytes are valid during the call.
func (t *talk) ask(b *batch, answer func(request int, kind uint16, data []byte)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := t.seq + 1
	requests := b.finish(first)
	t.seq += uint32(requests)
	if err := unix.Sendto(t.fd, b.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask the kernel: %w", err)
	}
	var refused *refusal
	refuse := func(request int, errno unix.Errno) {
		if refused == nil && (b.fine == nil || !b.fine(errno)) {
			refused = &refusal{request, b.kind(request), errno}
		}
	}
	for done := 0; done < requests; {
		n, _, err := unix.Recvfrom(t.fd, t.in, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("read the kernel's answer: %w", err)
		}
		for rest := t.in[:n]; len(rest) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(rest))
			if size < unix.SizeofNlMsghdr || size > len(rest) {
				return errors.New("read the kernel's answer: it is cut short")
			}
			kind, flags := binary.NativeEndian.Uint16(rest[4:]), binary.NativeEndian.Uint16(rest[6:])
			request, data := int(binary.NativeEndian.Uint32(rest[8:])-first), rest[unix.SizeofNlMsghdr:size]
			rest = rest[min(align(size), len(rest)):]
			if request < 0 || request >= requests {
				continue // of a batch whose answers nobody waited for
			}
			if flags&unix.NLM_F_DUMP_INTR != 0 {
				refuse(request, unix.EINTR)
			}
			if kind != unix.NLMSG_ERROR && kind != unix.NLMSG_DONE {
				if answer != nil {
					answer(request, kind, data)
				}
				continue
			}
			done++
			if len(data) < 4 {
				continue
			}
			if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(data))); errno != 0 {
				refuse(request, errno)
			}
		}
	}
	if refused != nil { // not a nil pointer in an interface that is none
		return refused
	}
	return nil
}

// batch is a number of requests in the kernel's own form. A method that adds an attribute adds it to the last request.
type batch struct {
	b      []byte
	starts []int
	fine   func(error) bool // refusals that are none; nil: no such
}

func align(n int) int { return (n + 3) &^ 3 }

// request begins one: flags are added to those that each has.
func (b *batch) request(kind, flags uint16, header []byte) {
	b.end()
	b.starts = append(b.starts, len(b.b))
	b.b = append(b.b, 0, 0, 0, 0)
	b.b = binary.NativeEndian.AppendUint16(b.b, kind)
	b.b = binary.NativeEndian.AppendUint16(b.b, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	b.b = append(b.b, 0, 0, 0, 0, 0, 0, 0, 0) // number, and sender: the kernel knows
	b.b = append(b.b, header...)
}

func (b *batch) kind(request int) uint16 {
	return binary.NativeEndian.Uint16(b.b[b.starts[request]+4:])
}

// end writes the length of the last request.
func (b *batch) end() {
	if len(b.starts) > 0 {
		b.length32(b.starts[len(b.starts)-1])
	}
}

func (b *batch) length32(at int) {
	binary.NativeEndian.PutUint32(b.b[at:], uint32(len(b.b)-at))
}

// finish numbers the requests from first on, and counts them.
func (b *batch) finish(first uint32) int {
	b.end()
	for i, at := range b.starts {
		binary.NativeEndian.PutUint32(b.b[at+8:], first+uint32(i))
	}
	return len(b.starts)
}

func (b *batch) attr(kind uint16, value []byte) {
	at := b.open(kind)
	b.b = append(b.b, value...)
	b.close(at)
}

func (b *batch) text(kind uint16, value string) {
	at := b.open(kind)
	b.b = append(append(b.b, value...), 0)
	b.close(at)
}

func (b *batch) number(kind uint16, value uint32) {
	at := b.open(kind)
	b.b = binary.NativeEndian.AppendUint32(b.b, value)
	b.close(at)
}

func (b *batch) addr(kind uint16, a netip.Addr) {
	if a.IsValid() {
		b.attr(kind, a.AsSlice())
	}
}

// open begins an attribute that holds others, which close ends.
func (b *batch) open(kind uint16) (at int) {
	at = len(b.b)
	b.b = append(b.b, 0, 0, 0, 0)
	binary.NativeEndian.PutUint16(b.b[at+2:], kind)
	return at
}

func (b *batch) close(at int) {
	binary.NativeEndian.PutUint16(b.b[at:], uint16(len(b.b)-at))
	for len(b.b)%4 != 0 {
		b.b = append(b.b, 0)
	}
}

// attributes calls f for each attribute in data.
func attributes(data []byte, f func(kind uint16, value []byte)) {
	for len(data) >= unix.SizeofRtAttr {
		size, kind := int(binary.NativeEndian.Uint16(data)), binary.NativeEndian.Uint16(data[2:])
		if size < unix.SizeofRtAttr || size > len(data) {
			return
		}
		f(kind&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), data[unix.SizeofRtAttr:size])
		data = data[min(align(size), len(data)):]
	}
}
