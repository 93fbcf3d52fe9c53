package wire

import "encoding/binary"

// Values of TLS that the first message of a connection is made of.
const (
	recordHandshake  = 22
	recordHeader     = 5
	messageHello     = 1
	messageHeader    = 4
	helloFixed       = 2 + 32 // version and random
	extensionALPN    = 16
	maxHelloLookedAt = 8 << 10
)

// looksForData reads the beginning of a TLS connection and reports whether it asks for dataProtocol. enough is false while
// more bytes may change the answer.
func looksForData(b []byte) (data, enough bool) {
	if len(b) == 0 {
		return false, false
	}
	if b[0] != recordHandshake {
		return false, true
	}
	if len(b) < recordHeader {
		return false, false
	}
	size := int(binary.BigEndian.Uint16(b[3:]))
	if size > maxHelloLookedAt-recordHeader {
		return false, true
	}
	if b = b[recordHeader:]; len(b) < size {
		return false, false
	}
	// A hello that is spread over several records is nobody's that we know.
	return offersData(b[:size]), true
}

// offersData looks through a whole hello.
func offersData(b []byte) bool {
	if len(b) < messageHeader+helloFixed || b[0] != messageHello {
		return false
	}
	b = b[messageHeader+helloFixed:]
	var ok bool
	for _, width := range []int{1, 2, 1} { // session, ciphers, compression
		if _, b, ok = vector(b, width); !ok {
			return false
		}
	}
	extensions, _, ok := vector(b, 2)
	for ok && len(extensions) >= 2 {
		kind := binary.BigEndian.Uint16(extensions)
		var body []byte
		if body, extensions, ok = vector(extensions[2:], 2); ok && kind == extensionALPN {
			return namesData(body)
		}
	}
	return false
}

// namesData looks through the protocols that are offered.
func namesData(b []byte) bool {
	names, _, ok := vector(b, 2)
	for ok && len(names) > 0 {
		var name []byte
		if name, names, ok = vector(names, 1); ok && string(name) == dataProtocol {
			return true
		}
	}
	return false
}

// vector takes off what stands behind its length, which has one or two bytes.
func vector(b []byte, width int) (body, rest []byte, ok bool) {
	if len(b) < width {
		return nil, nil, false
	}
	n := int(b[0])
	if width == 2 {
		n = int(binary.BigEndian.Uint16(b))
	}
	if b = b[width:]; len(b) < n {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}
