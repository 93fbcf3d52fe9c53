package sleeve

import "encoding/binary"

// vnetSize is the length of the header that stands before each packet of a TUN queue with IFF_VNET_HDR.
const vnetSize = 10

// Values in it.
const (
	vnetNeedsSum = 1

	vnetNone  = 0
	vnetTCP4  = 1
	vnetTCP6  = 4
	vnetUDP   = 5
	vnetECN   = 0x80
	vnetFlags = 0 // offsets
	vnetType  = 1
)

// vnet is that header, in the byte order of the machine: it never leaves it.
type vnet struct {
	flags, kind          uint8
	headers, segment     uint16
	sumStart, sumInStart uint16
}

func (v vnet) put(b []byte) {
	b[vnetFlags], b[vnetType] = v.flags, v.kind
	binary.NativeEndian.PutUint16(b[2:], v.headers)
	binary.NativeEndian.PutUint16(b[4:], v.segment)
	binary.NativeEndian.PutUint16(b[6:], v.sumStart)
	binary.NativeEndian.PutUint16(b[8:], v.sumInStart)
}

func parseVnet(b []byte) vnet {
	return vnet{
		flags: b[vnetFlags], kind: b[vnetType],
		headers: binary.NativeEndian.Uint16(b[2:]), segment: binary.NativeEndian.Uint16(b[4:]),
		sumStart: binary.NativeEndian.Uint16(b[6:]), sumInStart: binary.NativeEndian.Uint16(b[8:]),
	}
}

// complete finishes a checksum that the kernel left open at a place which the receiver would not find by itself.
func (v vnet) complete(b []byte) bool {
	at := int(v.sumStart) + int(v.sumInStart)
	if int(v.sumStart) > len(b) || at+2 > len(b) {
		return false
	}
	// The field holds the sum of the pseudo header already, so it is summed with the rest.
	c := ^fold(sum(b[v.sumStart:], 0))
	if c == 0 {
		c = 0xffff // the other zero, which also UDP understands
	}
	binary.BigEndian.PutUint16(b[at:], c)
	return true
}
