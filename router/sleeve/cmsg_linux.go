package sleeve

import (
	"encoding/binary"
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sizes of control messages: what a send or a receive of ours may carry.
const (
	sendOOB = 64
	recvOOB = 128
)

// putSendOOB writes the control messages of one send into oob and returns them: segment size unless 0, traffic class
// unless 0.
func putSendOOB(oob []byte, v6 bool, segment int, tos uint8) []byte {
	n := 0
	if segment != 0 {
		binary.NativeEndian.PutUint16(putCmsg(oob, &n, unix.SOL_UDP, unix.UDP_SEGMENT, 2), uint16(segment))
	}
	if tos != 0 {
		level, kind := int32(unix.IPPROTO_IP), int32(unix.IP_TOS)
		if v6 {
			level, kind = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
		}
		binary.NativeEndian.PutUint32(putCmsg(oob, &n, level, kind, 4), uint32(tos))
	}
	return oob[:n]
}

// putCmsg starts a control message at *n, moves *n behind it and returns the room for its data.
func putCmsg(oob []byte, n *int, level, kind int32, size int) []byte {
	b := oob[*n : *n+unix.CmsgSpace(size)]
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(size))
	*n += len(b)
	return b[unix.CmsgLen(0):]
}

// parseRecvOOB reads the segment size (0: one datagram) and the traffic class of a receive.
func parseRecvOOB(oob []byte) (segment int, tos uint8) {
	for len(oob) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		end := int(h.Len)
		if end < unix.CmsgLen(0) || end > len(oob) {
			return segment, tos
		}
		data := oob[unix.CmsgLen(0):end]
		switch {
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			segment = int(int32(binary.NativeEndian.Uint32(data)))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			tos = data[0]
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			tos = uint8(binary.NativeEndian.Uint32(data))
		}
		next := unix.CmsgSpace(end - unix.CmsgLen(0))
		if next > len(oob) {
			return segment, tos
		}
		oob = oob[next:]
	}
	return segment, tos
}

// refusesSegments reports whether a send failed because it was to be cut into datagrams, so that sending them one by
// one may work, and whether it will always be so. EIO comes from cards without checksum offload; EINVAL also when the
// segments are too large for the interface.
func refusesSegments(err error) (again, always bool) {
	always = errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EOPNOTSUPP)
	return always || errors.Is(err, unix.EINVAL), always
}

// tooBig reports whether a datagram exceeded what the interface takes.
func tooBig(err error) bool { return errors.Is(err, unix.EMSGSIZE) }

// deviceGone reports whether a TUN queue has lost its device for good.
func deviceGone(err error) bool { return errors.Is(err, unix.EBADFD) || errors.Is(err, unix.EBADF) }
