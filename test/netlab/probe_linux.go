package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// pingEvery is the pause between two tries of WaitPing.
const pingEvery = 50 * time.Millisecond

// Ping sends one ICMP echo from the host and waits for its answer, at most until ctx ends or two seconds have passed.
func (h *Host) Ping(ctx context.Context, dst netip.Addr) (time.Duration, error) {
	deadline := time.Now().Add(2 * time.Second)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	return h.ping(dst, deadline)
}

// WaitPing pings until an answer comes.
func (h *Host) WaitPing(ctx context.Context, dst netip.Addr) error {
	for wait := 4 * pingEvery; ; wait = min(wait+pingEvery/4, 20*pingEvery) { // a machine may be too busy for the first
		_, err := h.ping(dst, time.Now().Add(wait))
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(pingEvery):
		}
	}
}

func (h *Host) ping(dst netip.Addr, deadline time.Time) (time.Duration, error) {
	network, local, proto := "ip4:icmp", "0.0.0.0", protoICMP
	var request, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if dst.Is6() {
		network, local, proto = "ip6:ipv6-icmp", "::", protoICMPv6
		request, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	var c *icmp.PacketConn
	err := h.Do(func() (err error) {
		c, err = icmp.ListenPacket(network, local)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("ping %v from %s: %w", dst, h.name, err)
	}
	defer c.Close()
	start := time.Now()
	token := binary.BigEndian.AppendUint64(nil, uint64(start.UnixNano()))
	msg, err := (&icmp.Message{Type: request, Body: &icmp.Echo{ID: int(start.UnixNano()>>10) & 0xffff, Seq: 1, Data: token}}).Marshal(nil)
	if err != nil {
		return 0, err
	}
	_ = c.SetDeadline(deadline)
	if _, err := c.WriteTo(msg, &net.IPAddr{IP: dst.AsSlice(), Zone: dst.Zone()}); err != nil {
		return 0, fmt.Errorf("ping %v from %s: %w", dst, h.name, err)
	}
	buf := make([]byte, 1500)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return 0, fmt.Errorf("ping %v from %s: no answer: %w", dst, h.name, err)
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil || m.Type != reply {
			continue
		}
		if echo, ok := m.Body.(*icmp.Echo); ok && string(echo.Data) == string(token) {
			return time.Since(start), nil
		}
	}
}

// SendUDP sends one datagram with a source of the caller's choice, out of the device that the routes of h say.
func (h *Host) SendUDP(src, dst netip.AddrPort, payload []byte) error {
	return h.SendIP(UDPPacket(src, dst, payload))
}

// SendIP sends a whole IP packet as it is, out of the device that the routes of h say.
func (h *Host) SendIP(packet []byte) error {
	hd, ok := parseIP(packet)
	if !ok {
		return errors.New("send packet: not an IP packet")
	}
	return h.Do(func() error {
		family := unix.AF_INET
		if hd.Dst.Is6() {
			family = unix.AF_INET6
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return fmt.Errorf("open raw socket: %w", err)
		}
		defer unix.Close(fd)
		var to unix.Sockaddr = &unix.SockaddrInet6{Addr: hd.Dst.As16()}
		if hd.Dst.Is4() {
			to = &unix.SockaddrInet4{Addr: hd.Dst.As4()}
		}
		if err := unix.Sendto(fd, packet, 0, to); err != nil {
			return fmt.Errorf("send to %v: %w", hd.Dst, err)
		}
		return nil
	})
}

// UDPPacket builds an IP packet that holds a UDP datagram.
func UDPPacket(src, dst netip.AddrPort, payload []byte) []byte {
	const ttl = 64
	udp := binary.BigEndian.AppendUint16(nil, src.Port())
	udp = binary.BigEndian.AppendUint16(udp, dst.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(udp, 0, 0)
	udp = append(udp, payload...)
	pseudo := append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(udp)))
	pseudo = append(pseudo, 0, 0, 0, protoUDP)
	sum := checksum(append(pseudo, udp...))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], sum)

	var ip []byte
	if src.Addr().Is4() {
		ip = append(ip, 0x45, 0)
		ip = binary.BigEndian.AppendUint16(ip, uint16(20+len(udp)))
		ip = append(ip, 0, 0, 0, 0, ttl, protoUDP, 0, 0)
		ip = append(append(ip, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	} else {
		ip = append(ip, 0x60, 0, 0, 0)
		ip = binary.BigEndian.AppendUint16(ip, uint16(len(udp)))
		ip = append(ip, protoUDP, ttl)
		ip = append(append(ip, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	}
	return append(ip, udp...)
}
