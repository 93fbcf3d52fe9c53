package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// echoer sends numbered requests and hears the answers: over ICMP, or over UDP to something that sends everything back.
// One goroutine may send while another receives.
type echoer interface {
	send(seq uint64, size int) error
	// receive waits for the next answer to a request of ours.
	receive(deadline time.Time) (seq uint64, sent time.Time, err error)
	close() error
}

// An answer is known by the cookie, the number and the time that its request carried.
const minPayload = 24

type payload struct{ cookie uint64 }

func newPayload() payload {
	return payload{uint64(time.Now().UnixNano())<<16 | uint64(os.Getpid()&0xffff)}
}

func (p payload) encode(seq uint64, size int) []byte {
	b := make([]byte, 0, max(size, minPayload))
	b = binary.BigEndian.AppendUint64(b, p.cookie)
	b = binary.BigEndian.AppendUint64(b, seq)
	b = binary.BigEndian.AppendUint64(b, uint64(time.Now().UnixNano()))
	return b[:cap(b)]
}

func (p payload) decode(b []byte) (seq uint64, sent time.Time, ok bool) {
	if len(b) < minPayload || binary.BigEndian.Uint64(b) != p.cookie {
		return 0, time.Time{}, false
	}
	return binary.BigEndian.Uint64(b[8:]), time.Unix(0, int64(binary.BigEndian.Uint64(b[16:]))), true
}

// readBuffer is seconds of packets at any rate asked for here: on a busy machine what is lost should be the network's, not
// this program's. The kernel's own default holds 200.
const readBuffer = 16 << 20

// askForBuffer gets at most what the machine allows to everybody.
func askForBuffer(conn any) {
	if c, ok := conn.(interface{ SetReadBuffer(bytes int) error }); ok {
		_ = c.SetReadBuffer(readBuffer)
	}
}

type icmpEcho struct {
	payload
	conn           net.PacketConn
	dst            net.Addr
	id, proto      int
	request, reply icmp.Type
	buf            []byte
}

// newICMP opens a raw socket, or where that is forbidden the unprivileged kind.
func newICMP(dst, from netip.Addr) (*icmpEcho, error) {
	e := &icmpEcho{
		payload: newPayload(), id: os.Getpid() & 0xffff, proto: 1, buf: make([]byte, 64<<10),
		request: ipv4.ICMPTypeEcho, reply: ipv4.ICMPTypeEchoReply, dst: &net.IPAddr{IP: dst.AsSlice(), Zone: dst.Zone()},
	}
	raw, soft, local := "ip4:icmp", "udp4", "0.0.0.0"
	if dst.Is6() {
		raw, soft, local = "ip6:ipv6-icmp", "udp6", "::"
		e.proto, e.request, e.reply = 58, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	if from.IsValid() {
		local = from.String()
	}
	var err error
	if e.conn, err = net.ListenPacket(raw, local); err != nil {
		if e.conn, err = icmp.ListenPacket(soft, local); err != nil {
			return nil, fmt.Errorf("open ICMP socket: %w", err)
		}
		e.dst = &net.UDPAddr{IP: dst.AsSlice(), Zone: dst.Zone()}
	}
	deepen(e.conn)
	return e, nil
}

func (e *icmpEcho) send(seq uint64, size int) error {
	b, err := (&icmp.Message{Type: e.request, Body: &icmp.Echo{ID: e.id, Seq: int(seq & 0xffff), Data: e.encode(seq, size)}}).Marshal(nil)
	if err != nil {
		return err
	}
	_, err = e.conn.WriteTo(b, e.dst)
	return err
}

func (e *icmpEcho) receive(deadline time.Time) (uint64, time.Time, error) {
	_ = e.conn.SetReadDeadline(deadline)
	for {
		n, _, err := e.conn.ReadFrom(e.buf)
		if err != nil {
			return 0, time.Time{}, err
		}
		m, err := icmp.ParseMessage(e.proto, e.buf[:n])
		if err != nil || m.Type != e.reply {
			continue
		}
		if echo, ok := m.Body.(*icmp.Echo); ok {
			if seq, sent, ok := e.decode(echo.Data); ok {
				return seq, sent, nil
			}
		}
	}
}

func (e *icmpEcho) close() error { return e.conn.Close() }

type udpEcho struct {
	payload
	conn *net.UDPConn
	buf  []byte
}

func newUDP(dst netip.AddrPort) (*udpEcho, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(dst))
	if err != nil {
		return nil, fmt.Errorf("open UDP socket: %w", err)
	}
	deepen(c)
	return &udpEcho{payload: newPayload(), conn: c, buf: make([]byte, 64<<10)}, nil
}

func (e *udpEcho) send(seq uint64, size int) error {
	_, err := e.conn.Write(e.encode(seq, size))
	return err
}

func (e *udpEcho) receive(deadline time.Time) (uint64, time.Time, error) {
	_ = e.conn.SetReadDeadline(deadline)
	for {
		n, err := e.conn.Read(e.buf)
		if err != nil {
			if ne, ok := err.(net.Error); ok && !ne.Timeout() && time.Now().Before(deadline) { //nolint:errorlint // never wrapped
				continue // an ICMP error about an earlier datagram
			}
			return 0, time.Time{}, err
		}
		if seq, sent, ok := e.decode(e.buf[:n]); ok {
			return seq, sent, nil
		}
	}
}

func (e *udpEcho) close() error { return e.conn.Close() }
