package host

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Echoer tests devices from end to end: it sends ICMP echo requests into a device, whatever the routes say, and collects
// the answers, which the other machine sends by routes of its own. It never blocks and has no goroutine.
//
// Over IPv6 the kernel lets a device be named only where a route leads to the address by it, which may be one that packets
// without a device never take; the source is what that route says.
type Echoer struct {
	v4, v6  int   // sockets
	without error // why there is no v6
	id      uint16
	token   [echoToken]byte // tells our answers from those of others with the same number
	buf     []byte
}

// Types of ICMP.
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

// OpenEcho opens the sockets in the host's namespace.
func (h *Host) OpenEcho() (*Echoer, error) {
	e := &Echoer{buf: make([]byte, 1<<16)}
	if _, err := rand.Read(e.token[:]); err != nil {
		return nil, err
	}
	e.id = binary.BigEndian.Uint16(e.token[:])
	const flags = unix.SOCK_RAW | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	err := h.Do(func() (err error) {
		e.v6, e.without = unix.Socket(unix.AF_INET6, flags, unix.IPPROTO_ICMPV6)
		e.v4, err = unix.Socket(unix.AF_INET, flags, unix.IPPROTO_ICMP)
		return err
	})
	if err != nil {
		if e.without == nil {
			_ = unix.Close(e.v6)
		}
		return nil, fmt.Errorf("open ICMP socket: %w", explain(err))
	}
	const icmpFilter, blocked = 1, ^uint32(1 << echoReply4) // all types but echo reply
	err = errors.Join(
		unix.SetsockoptInt(e.v4, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptInt(e.v4, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE),
		unix.SetsockoptString(e.v4, unix.SOL_RAW, icmpFilter, string(binary.NativeEndian.AppendUint32(nil, blocked))),
	)
	if e.without == nil {
		err = errors.Join(err, prepareEcho6(e.v6))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare ICMP socket: %w", err), e.Close())
	}
	return e, nil
}

func prepareEcho6(fd int) error {
	const icmp6Filter = 1
	var blocked unix.ICMPv6Filter
	for i := range blocked.Data {
		blocked.Data[i] = ^uint32(0)
	}
	blocked.Data[echoReply6/32] &^= 1 << (echoReply6 % 32)
	return errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1),
		unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, icmp6Filter, &blocked),
	)
}

// Send sends one request of size bytes, IP header included, through the device to an address of the other machine.
func (e *Echoer) Send(device int, from, to netip.Addr, seq uint16, size int) error {
	switch {
	case from.Is4() && to.Is4():
		b := e.request(echoRequest4, seq, size-20)
		binary.BigEndian.PutUint16(b[2:], icmpChecksum(b))
		info := unix.Inet4Pktinfo{Ifindex: int32(device), Spec_dst: from.As4()}
		return unix.Sendmsg(e.v4, b, unix.PktInfo4(&info), &unix.SockaddrInet4{Addr: to.As4()}, 0)
	case !from.Is6() || !to.Is6():
		return errors.New("test a device: its two ends have addresses of different families")
	case e.without != nil:
		return fmt.Errorf("open ICMPv6 socket: %w", explain(e.without))
	}
	// A source in the message would make the kernel prefer the device where it now insists on it.
	info := unix.Inet6Pktinfo{Ifindex: uint32(device)}
	return unix.Sendmsg(e.v6, e.request(echoRequest6, seq, size-40), unix.PktInfo6(&info), &unix.SockaddrInet6{Addr: to.As16()}, 0)
}

// request writes an echo request of n bytes, but for the checksum, which over IPv6 is the kernel's part.
func (e *Echoer) request(kind byte, seq uint16, n int) []byte {
	b := make([]byte, max(n, echoHeader+echoToken))
	b[0] = kind
	binary.BigEndian.PutUint16(b[4:], e.id)
	binary.BigEndian.PutUint16(b[6:], seq)
	copy(b[echoHeader:], e.token[:])
	return b
}

// Receive returns the answers that have come since it was called last.
func (e *Echoer) Receive() (answers []Echo) {
	for b, a := range e.packets(e.v4) {
		if len(b) >= 20 && len(b) >= int(b[0]&0xf)*4 {
			answers = e.answer(answers, b[int(b[0]&0xf)*4:], echoReply4, a)
		}
	}
	if e.without == nil {
		for b, a := range e.packets(e.v6) {
			answers = e.answer(answers, b, echoReply6, a)
		}
	}
	return answers
}

// answer appends a message when it is an answer to one of ours.
func (e *Echoer) answer(answers []Echo, b []byte, kind byte, a Echo) []Echo {
	if len(b) < echoHeader+echoToken || b[0] != kind || binary.BigEndian.Uint16(b[4:]) != e.id ||
		[echoToken]byte(b[echoHeader:]) != e.token {
		return answers
	}
	a.Seq = binary.BigEndian.Uint16(b[6:])
	return append(answers, a)
}

// packets reads what a socket has now, with where it is from and when it came.
func (e *Echoer) packets(fd int) iter.Seq2[[]byte, Echo] {
	return func(yield func([]byte, Echo) bool) {
		oob := make([]byte, 128)
		for {
			n, oobn, _, sa, err := unix.Recvmsg(fd, e.buf, oob, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return
			}
			a := Echo{At: stampOf(oob[:oobn])}
			switch from := sa.(type) {
			case *unix.SockaddrInet4:
				a.From = netip.AddrFrom4(from.Addr)
			case *unix.SockaddrInet6:
				a.From = netip.AddrFrom16(from.Addr)
			}
			if !yield(e.buf[:n], a) {
				return
			}
		}
	}
}

// stampOf is when the kernel received a packet.
func stampOf(oob []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err == nil {
		for _, m := range messages {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
				return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
			}
		}
	}
	return time.Now()
}

// Close closes the sockets.
func (e *Echoer) Close() error {
	err := unix.Close(e.v4)
	if e.without == nil {
		err = errors.Join(err, unix.Close(e.v6))
	}
	return err
}

func icmpChecksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
