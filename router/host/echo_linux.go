package host

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Echoer tests devices from end to end: it sends ICMP echo requests into a device, whatever the routes say, and collects
// the answers, which the other machine sends by routes of its own. It never blocks and has no goroutine. IPv4 only: for
// IPv6 the kernel does not let a device be named against the routes.
type Echoer struct {
	h     *Host
	fd    int
	id    uint16
	token [echoToken]byte // tells our answers from those of others with the same number
	buf   []byte
}

// OpenEcho opens the socket in the host's namespace.
func (h *Host) OpenEcho() (*Echoer, error) {
	e := &Echoer{h: h, buf: make([]byte, 1<<16)}
	if _, err := rand.Read(e.token[:]); err != nil {
		return nil, err
	}
	e.id = binary.BigEndian.Uint16(e.token[:])
	err := h.Do(func() (err error) {
		e.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open ICMP socket: %w", explain(err))
	}
	const icmpFilter, blocked = 1, ^uint32(1 << 0) // all types but echo reply, which is type 0
	err = errors.Join(
		unix.SetsockoptInt(e.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptInt(e.fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE),
		unix.SetsockoptString(e.fd, unix.SOL_RAW, icmpFilter, string(binary.NativeEndian.AppendUint32(nil, blocked))),
	)
	if err != nil {
		_ = unix.Close(e.fd)
		return nil, fmt.Errorf("prepare ICMP socket: %w", err)
	}
	return e, nil
}

// Send sends one request of size bytes, IPv4 header included, through the device to an address of the other machine.
func (e *Echoer) Send(device int, from, to netip.Addr, seq uint16, size int) error {
	if !from.Is4() || !to.Is4() {
		return errors.New("test a device: only with IPv4 addresses")
	}
	b := make([]byte, max(size, MinEcho)-20)
	b[0] = 8 // echo request
	binary.BigEndian.PutUint16(b[4:], e.id)
	binary.BigEndian.PutUint16(b[6:], seq)
	copy(b[echoHeader:], e.token[:])
	binary.BigEndian.PutUint16(b[2:], icmpChecksum(b))
	info := unix.Inet4Pktinfo{Ifindex: int32(device), Spec_dst: from.As4()}
	return unix.Sendmsg(e.fd, b, unix.PktInfo4(&info), &unix.SockaddrInet4{Addr: to.As4()}, 0)
}

// Receive returns the answers that have come since it was called last.
func (e *Echoer) Receive() (answers []Echo) {
	oob := make([]byte, 128)
	for {
		n, oobn, _, sa, err := unix.Recvmsg(e.fd, e.buf, oob, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return answers
		}
		from, ok := sa.(*unix.SockaddrInet4)
		b := e.buf[:n]
		if !ok || len(b) < 20 || len(b) < int(b[0]&0xf)*4+echoHeader+echoToken {
			continue
		}
		b = b[int(b[0]&0xf)*4:]
		if b[0] != 0 || binary.BigEndian.Uint16(b[4:]) != e.id || [echoToken]byte(b[echoHeader:]) != e.token {
			continue
		}
		answers = append(answers, Echo{
			From: netip.AddrFrom4(from.Addr), Seq: binary.BigEndian.Uint16(b[6:]), At: stampOf(oob[:oobn]),
		})
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

// Close closes the socket.
func (e *Echoer) Close() error { return unix.Close(e.fd) }

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
