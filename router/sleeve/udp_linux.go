package sleeve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketBuffer is asked for in both directions; the kernel doubles it and counts its own overhead. It rides out a reader
// that is not scheduled for some 20 ms at 3 Gbit/s; a larger one would only make control wait longer behind bulk.
const socketBuffer = 8 << 20

// ListenUDP opens the weft port for the engine: one socket for each address family that the machine has, with
// fragmentation forbidden, large buffers, segment coalescing and the outer traffic class reported. An unspecified
// address (zero, 0.0.0.0 or ::) means both families. It is called by whoever holds the rights; the connections, or
// duplicates of their files, may be handed to another process.
func ListenUDP(ctx context.Context, addr netip.AddrPort) ([]*net.UDPConn, error) {
	type family struct{ network, host string }
	families := []family{{"udp4", "0.0.0.0"}, {"udp6", "::"}}
	if a := addr.Addr(); a.IsValid() && !a.IsUnspecified() {
		if a = a.Unmap(); a.Is4() {
			families = []family{{"udp4", a.String()}}
		} else {
			families = []family{{"udp6", a.String()}}
		}
	}
	port := addr.Port()
	var conns []*net.UDPConn
	for _, f := range families {
		lc := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error { return tune(network, c) }}
		pc, err := lc.ListenPacket(ctx, f.network, net.JoinHostPort(f.host, strconv.Itoa(int(port))))
		if err != nil {
			if f.network == "udp6" && len(conns) > 0 && noIPv6(err) {
				continue
			}
			for _, c := range conns {
				c.Close()
			}
			return nil, fmt.Errorf("listen on UDP port %d: %w", port, err)
		}
		c := pc.(*net.UDPConn)
		conns = append(conns, c)
		if port == 0 { // chosen by the kernel; the other family takes the same
			port = c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		}
	}
	return conns, nil
}

// noIPv6 reports whether the kernel has IPv6 switched off.
func noIPv6(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// tune sets what the engine wants of a socket. Only forbidding fragmentation is a condition: without it a datagram
// that exceeds the path would be cut silently and the path MTU never be learned.
func tune(network string, rc syscall.RawConn) error {
	var fail error
	err := rc.Control(func(f uintptr) {
		fd := int(f)
		for _, o := range [...][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
			if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], socketBuffer) != nil { // needs CAP_NET_ADMIN
				_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[1], socketBuffer) // cut to rmem_max
			}
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1)
		if network == "udp4" {
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
			fail = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
			return
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
		if fail = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); fail == nil {
			fail = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		}
	})
	if err != nil {
		return err
	}
	if fail != nil {
		return fmt.Errorf("forbid fragmentation: %w", fail)
	}
	return nil
}
