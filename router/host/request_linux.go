package host

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Numbers of the kernel's interface that package unix leaves out.
const (
	vethPeer     = 1 // VETH_INFO_PEER
	withoutStats = 8 // RTEXT_FILTER_SKIP_STATS: counters are half of what is told about a link
	loopback     = 1 // index of lo in each namespace

	conf4ReversePath = 8 // IPV4_DEVCONF_RP_FILTER
	conf6Forwarding  = 0 // DEVCONF_FORWARDING
	conf6AcceptRA    = 3
	conf6Disable     = 26
	conf6AcceptDAD   = 27
)

// end is what the kernel says of one end of a pair, or of another link.
type end struct {
	index, peer  int
	mtu          int
	gso          int
	addrGen      int    // how the link makes IPv6 addresses for itself; -1: it has none
	conf4, conf6 []byte // settings by number, as /proc/sys/net/ipv*/conf/NAME has them by name; empty: none of the family
}

func parseEnd(data []byte) (e end) {
	if len(data) < unix.SizeofIfInfomsg {
		return e
	}
	e.index, e.addrGen = int(binary.NativeEndian.Uint32(data[4:])), -1
	attributes(data[unix.SizeofIfInfomsg:], func(kind uint16, v []byte) {
		switch {
		case kind == unix.IFLA_AF_SPEC:
			attributes(v, func(family uint16, v []byte) {
				attributes(v, func(kind uint16, v []byte) {
					switch {
					case family == unix.AF_INET && kind == unix.IFLA_INET_CONF:
						e.conf4 = slices.Clone(v)
					case family == unix.AF_INET6 && kind == unix.IFLA_INET6_CONF:
						e.conf6 = slices.Clone(v)
					case family == unix.AF_INET6 && kind == unix.IFLA_INET6_ADDR_GEN_MODE && len(v) == 1:
						e.addrGen = int(v[0])
					}
				})
			})
		case len(v) != 4:
		case kind == unix.IFLA_LINK:
			e.peer = int(binary.NativeEndian.Uint32(v))
		case kind == unix.IFLA_MTU:
			e.mtu = int(binary.NativeEndian.Uint32(v))
		case kind == unix.IFLA_GSO_MAX_SIZE:
			e.gso = int(binary.NativeEndian.Uint32(v))
		}
	})
	return e
}

// has reports whether a setting is known to have a value.
func has(conf []byte, number int, value byte) bool {
	return len(conf) >= 4*(number+1) && binary.NativeEndian.Uint32(conf[4*number:]) == uint32(value)
}

// linkHeader is a struct ifinfomsg.
func linkHeader(index int, flags uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], flags) // those that are to change
	return b
}

// veth makes a pair whose other end is born in the namespace of the file ns, so that it never stands in ours.
func (b *batch) veth(name string, mac net.HardwareAddr, peer string, peerMAC net.HardwareAddr, mtu, ns int) {
	b.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkHeader(0, 0))
	half := func(name string, mac net.HardwareAddr) {
		b.text(unix.IFLA_IFNAME, name)
		b.number(unix.IFLA_MTU, uint32(mtu))
		b.attr(unix.IFLA_ADDRESS, mac)
		b.number(unix.IFLA_GSO_MAX_SIZE, MaxSuperPacket)
		// The kernel would make queues for each processor, with files for each; without XDP no packet sees more than the first.
		b.number(unix.IFLA_NUM_TX_QUEUES, 1)
		b.number(unix.IFLA_NUM_RX_QUEUES, 1)
	}
	half(name, mac)
	info := b.open(unix.IFLA_LINKINFO)
	b.text(unix.IFLA_INFO_KIND, "veth")
	data := b.open(unix.IFLA_INFO_DATA)
	other := b.open(vethPeer)
	b.b = append(b.b, linkHeader(0, 0)...)
	half(peer, peerMAC)
	b.number(unix.IFLA_NET_NS_FD, uint32(ns))
	b.close(other)
	b.close(data)
	b.close(info)
}

// look asks for a link by its name, or by its index when it has none.
func (b *batch) look(name string, index int) {
	b.request(unix.RTM_GETLINK, 0, linkHeader(index, 0))
	if name != "" {
		b.text(unix.IFLA_IFNAME, name)
	}
	b.number(unix.IFLA_EXT_MASK, withoutStats)
}

// raise brings an end up, as it should be.
func (b *batch) raise(e end, mtu int) {
	b.request(unix.RTM_NEWLINK, 0, linkHeader(e.index, unix.IFF_UP))
	if e.mtu != mtu {
		b.number(unix.IFLA_MTU, uint32(mtu))
	}
	if e.gso > MaxSuperPacket {
		b.number(unix.IFLA_GSO_MAX_SIZE, MaxSuperPacket)
	}
}

// guarded adds to raise what the host's end needs beyond: a strict reverse path filter, and no address of its own making. The
// kernel comes to that after it brought the link up; addresses are made when there is a carrier, and the other end is down.
func (b *batch) guarded(e end) {
	all := b.open(unix.IFLA_AF_SPEC)
	four := b.open(unix.AF_INET)
	conf := b.open(unix.IFLA_INET_CONF)
	b.number(conf4ReversePath, 1)
	b.close(conf)
	b.close(four)
	if len(e.conf6) > 0 {
		six := b.open(unix.AF_INET6)
		b.attr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{nl6AddrGenNone})
		b.close(six)
	}
	b.close(all)
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// address gives an end an address for itself alone, at once.
func (b *batch) address(index int, a netip.Addr) {
	header := []byte{family(a), byte(a.BitLen()), 0, 0, 0, 0, 0, 0} // struct ifaddrmsg
	if a.Is6() {
		header[2] = unix.IFA_F_NODAD
	}
	binary.NativeEndian.PutUint32(header[4:], uint32(index))
	b.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, header)
	b.addr(unix.IFA_LOCAL, a)
	b.addr(unix.IFA_ADDRESS, a)
}

// neighbour says for ever which MAC address has a.
func (b *batch) neighbour(index int, a netip.Addr, mac net.HardwareAddr) {
	header := make([]byte, unix.SizeofNdMsg)
	header[0] = family(a)
	binary.NativeEndian.PutUint32(header[4:], uint32(index))
	binary.NativeEndian.PutUint16(header[8:], unix.NUD_PERMANENT)
	b.request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, header)
	b.addr(unix.NDA_DST, a)
	b.attr(unix.NDA_LLADDR, mac)
}

// way is a route by a device.
type way struct {
	dst      netip.Prefix
	via, src netip.Addr // zero: none
	index    int        // 0: whatever device it is by
	protocol byte
	metric   uint32 // 0: the kernel's own choice
}

func (b *batch) route(kind, flags uint16, w way) {
	header := make([]byte, unix.SizeofRtMsg)
	header[0], header[1] = family(w.dst.Addr()), byte(w.dst.Bits())
	header[4], header[5], header[7] = unix.RT_TABLE_MAIN, w.protocol, unix.RTN_UNICAST
	if w.dst.Addr().Is4() && !w.via.IsValid() {
		header[6] = unix.RT_SCOPE_LINK
	}
	b.request(kind, flags, header)
	if w.dst.Bits() > 0 {
		b.addr(unix.RTA_DST, w.dst.Addr())
	}
	b.addr(unix.RTA_GATEWAY, w.via)
	b.addr(unix.RTA_PREFSRC, w.src)
	if w.metric != 0 {
		b.number(unix.RTA_PRIORITY, w.metric)
	}
	if w.index != 0 {
		b.number(unix.RTA_OIF, uint32(w.index))
	}
}

// routes asks for all routes of the namespace.
func (b *batch) routes() {
	b.request(unix.RTM_GETROUTE, unix.NLM_F_DUMP, make([]byte, unix.SizeofRtMsg))
}

// isDefault reports whether data is a route of the main table that leads everything somewhere, of which family, and by which
// device; 0 stands for several.
func isDefault(data []byte) (fam byte, index int, yes bool) {
	if len(data) < unix.SizeofRtMsg || data[1] != 0 || data[4] != unix.RT_TABLE_MAIN || data[7] != unix.RTN_UNICAST {
		return 0, 0, false
	}
	attributes(data[unix.SizeofRtMsg:], func(kind uint16, v []byte) {
		if kind == unix.RTA_OIF && len(v) == 4 {
			index = int(binary.NativeEndian.Uint32(v))
		}
	})
	return data[0], index, true
}
