package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"weft/crypto/tlv"
)

// protocol is the version of the control protocol: a change that an older program would misread raises the major
// number, all else the minor one.
var protocol = tlv.V(1, 0)

// kind says what a frame is. Numbers are never reused.
type kind uint16

const (
	kindHello     kind = 1
	kindStop      kind = 2
	kindReply     kind = 3
	kindError     kind = 4
	kindIdentity  kind = 16
	kindPeers     kind = 17
	kindTunnels   kind = 18
	kindLocal     kind = 19
	kindUDP       kind = 32
	kindTCP       kind = 33
	kindTUN       kind = 34
	kindFiles     kind = 35
	kindDatagram  kind = 48
	kindAccepted  kind = 49
	kindStats     kind = 64
	kindDisplaced kind = 80

	kindDeviceSet  kind = 20
	kindDeviceShut kind = 21
	kindDeviceOpen kind = 36
	kindDeviceGet  kind = 65
	kindDeviceLend kind = 37

	kindRelay  kind = 22
	kindSparse kind = 23
	kindPunch  kind = 50
)

// Sizes of the protocol.
const (
	headerSize = 12
	maxBody    = 16 << 20 // desired state of some ten thousand peers
	maxFiles   = 64       // in one frame
)

// maxGreeting bounds the body of a frame before hello was answered.
const maxGreeting = 4 << 10

var errFrame = errors.New("malformed control frame")

// header is the fixed part of a frame.
type header struct {
	size    int
	version tlv.Version
	files   int
	kind    kind
	id      uint32
}

// frame is one message. Body is valid until the next read from the same conn; fds belong to the receiver.
type frame struct {
	header
	body []byte
	fds  []int
}

func appendHeader(dst []byte, h header) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(h.size))
	dst = append(dst, byte(h.version), uint8(h.files))
	dst = binary.BigEndian.AppendUint16(dst, uint16(h.kind))
	return binary.BigEndian.AppendUint32(dst, h.id)
}

// parseHeader reads a header from the first headerSize bytes of b; limit bounds the body.
func parseHeader(b []byte, limit int) (header, error) {
	h := header{
		size:    int(binary.BigEndian.Uint32(b)),
		version: tlv.Version(b[4]),
		files:   int(b[5]),
		kind:    kind(binary.BigEndian.Uint16(b[6:])),
		id:      binary.BigEndian.Uint32(b[8:]),
	}
	if h.size > limit {
		return header{}, fmt.Errorf("%w: body of %d bytes, limit %d", errFrame, h.size, limit)
	}
	if h.files > maxFiles {
		return header{}, fmt.Errorf("%w: %d descriptors, limit %d", errFrame, h.files, maxFiles)
	}
	return h, nil
}
