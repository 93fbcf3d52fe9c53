package tlv

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"unicode/utf8"
)

// AppendUint8 adds a field of one byte.
func AppendUint8(dst []byte, tag uint16, v uint8) []byte { return Append(dst, tag, []byte{v}) }

// AppendBool adds a field of one byte, 1, when v is true and nothing when it is false.
func AppendBool(dst []byte, tag uint16, v bool) []byte {
	if !v {
		return dst
	}
	return AppendUint8(dst, tag, 1)
}

// AppendUint16 adds a field of two bytes.
func AppendUint16(dst []byte, tag uint16, v uint16) []byte {
	return Append(dst, tag, binary.BigEndian.AppendUint16(nil, v))
}

// AppendUint32 adds a field of four bytes.
func AppendUint32(dst []byte, tag uint16, v uint32) []byte {
	return Append(dst, tag, binary.BigEndian.AppendUint32(nil, v))
}

// AppendUint64 adds a field of eight bytes.
func AppendUint64(dst []byte, tag uint16, v uint64) []byte {
	return Append(dst, tag, binary.BigEndian.AppendUint64(nil, v))
}

// AppendString adds a field with the bytes of s.
func AppendString(dst []byte, tag uint16, s string) []byte { return Append(dst, tag, []byte(s)) }

// AppendPrefix adds a field with an address of 4 or 16 bytes and the prefix length. An invalid prefix adds nothing.
func AppendPrefix(dst []byte, tag uint16, p netip.Prefix) []byte {
	if !p.IsValid() {
		return dst
	}
	return Append(dst, tag, Prefix(p))
}

// AppendAddrPort adds a field with an address of 4 or 16 bytes and the port. An invalid address adds nothing; zones do
// not travel.
func AppendAddrPort(dst []byte, tag uint16, ap netip.AddrPort) []byte {
	if !ap.IsValid() {
		return dst
	}
	return Append(dst, tag, AddrPort(ap))
}

// Prefix is a valid prefix as a value, 5 or 17 bytes; bits after the prefix length are cleared.
func Prefix(p netip.Prefix) []byte { return append(p.Masked().Addr().AsSlice(), byte(p.Bits())) }

// AddrPort is a valid address and port as a value, 6 or 18 bytes; IPv4 in IPv6 becomes IPv4.
func AddrPort(ap netip.AddrPort) []byte {
	return binary.BigEndian.AppendUint16(ap.Addr().Unmap().AsSlice(), ap.Port())
}

// ParsePrefix reads what Prefix made. Only the canonical form is accepted: no bits after the prefix length, no IPv4 in
// IPv6.
func ParsePrefix(value []byte) (netip.Prefix, error) {
	if len(value) != 5 && len(value) != 17 {
		return netip.Prefix{}, fmt.Errorf("%w: a prefix of %d bytes", ErrMalformed, len(value))
	}
	addr, _ := netip.AddrFromSlice(value[:len(value)-1])
	p := netip.PrefixFrom(addr, int(value[len(value)-1]))
	if !p.IsValid() || p != p.Masked() || addr.Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%w: prefix %x", ErrMalformed, value)
	}
	return p, nil
}

// ParseAddrPort reads what AddrPort made.
func ParseAddrPort(value []byte) (netip.AddrPort, error) {
	if len(value) != 6 && len(value) != 18 {
		return netip.AddrPort{}, fmt.Errorf("%w: an endpoint of %d bytes", ErrMalformed, len(value))
	}
	addr, _ := netip.AddrFromSlice(value[:len(value)-2])
	if addr.Is4In6() {
		return netip.AddrPort{}, fmt.Errorf("%w: endpoint %x", ErrMalformed, value)
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(value[len(value)-2:])), nil
}

// Reader takes typed values out of Fields. A field that is absent reads as the zero value; the first one that is there
// and cannot be read is remembered for Err, so that a decoder reads everything and asks once.
type Reader struct {
	fields Fields
	err    error
}

// NewReader reads values of f.
func NewReader(f Fields) *Reader { return &Reader{fields: f} }

// Err is the first thing that was wrong.
func (r *Reader) Err() error { return r.err }

// Fail records an error unless there was one before; decoders use it for checks of their own.
func (r *Reader) Fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// Has reports whether the field is there.
func (r *Reader) Has(tag uint16) bool { _, ok := r.fields.Get(tag); return ok }

// Require records an error when one of the fields is absent.
func (r *Reader) Require(tags ...uint16) {
	for _, tag := range tags {
		if !r.Has(tag) {
			r.Fail(fmt.Errorf("%w: no field %d", ErrMalformed, tag))
		}
	}
}

func (r *Reader) sized(tag uint16, size int) []byte {
	value, ok := r.fields.Get(tag)
	if !ok {
		return nil
	}
	if len(value) != size {
		r.Fail(fmt.Errorf("%w: field %d has %d bytes, want %d", ErrMalformed, tag, len(value), size))
		return nil
	}
	return value
}

// Uint8 reads a field of one byte.
func (r *Reader) Uint8(tag uint16) uint8 {
	if v := r.sized(tag, 1); v != nil {
		return v[0]
	}
	return 0
}

// Bool reads what AppendBool wrote.
func (r *Reader) Bool(tag uint16) bool { return r.Uint8(tag) != 0 }

// Uint16 reads a field of two bytes.
func (r *Reader) Uint16(tag uint16) uint16 {
	if v := r.sized(tag, 2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

// Uint32 reads a field of four bytes.
func (r *Reader) Uint32(tag uint16) uint32 {
	if v := r.sized(tag, 4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

// Uint64 reads a field of eight bytes.
func (r *Reader) Uint64(tag uint16) uint64 {
	if v := r.sized(tag, 8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// Bytes reads a field of at most limit bytes, as a part of the parsed bytes; nil when absent.
func (r *Reader) Bytes(tag uint16, limit int) []byte {
	value, ok := r.fields.Get(tag)
	if ok && len(value) > limit {
		r.Fail(fmt.Errorf("%w: field %d has %d bytes, at most %d", ErrMalformed, tag, len(value), limit))
		return nil
	}
	return value
}

// Copy fills dst with a field of exactly its length; an absent field leaves it as it is.
func (r *Reader) Copy(tag uint16, dst []byte) { copy(dst, r.sized(tag, len(dst))) }

// String reads a field of valid UTF-8 of at most limit bytes.
func (r *Reader) String(tag uint16, limit int) string {
	value := r.Bytes(tag, limit)
	if !utf8.Valid(value) {
		r.Fail(fmt.Errorf("%w: field %d is not UTF-8", ErrMalformed, tag))
		return ""
	}
	return string(value)
}

// Prefix reads what AppendPrefix wrote.
func (r *Reader) Prefix(tag uint16) netip.Prefix {
	value, ok := r.fields.Get(tag)
	if !ok {
		return netip.Prefix{}
	}
	p, err := ParsePrefix(value)
	if err != nil {
		r.Fail(fmt.Errorf("field %d: %w", tag, err))
	}
	return p
}

// AddrPort reads what AppendAddrPort wrote.
func (r *Reader) AddrPort(tag uint16) netip.AddrPort {
	value, ok := r.fields.Get(tag)
	if !ok {
		return netip.AddrPort{}
	}
	ap, err := ParseAddrPort(value)
	if err != nil {
		r.Fail(fmt.Errorf("field %d: %w", tag, err))
	}
	return ap
}

// List reads what AppendList wrote, at most limit items, as parts of the parsed bytes.
func (r *Reader) List(tag uint16, limit int) [][]byte {
	value, ok := r.fields.Get(tag)
	if !ok {
		return nil
	}
	items, err := List(value, limit)
	if err == nil && len(items) == 0 {
		err = fmt.Errorf("%w: an empty list", ErrMalformed)
	}
	if err != nil {
		r.Fail(fmt.Errorf("field %d: %w", tag, err))
	}
	return items
}
