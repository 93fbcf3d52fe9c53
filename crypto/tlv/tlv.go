package tlv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
)

// Limits of the implementation, checked before anything is allocated.
const (
	MaxFields = 64       // in one list of fields
	MaxSize   = 16 << 20 // bytes of one list of fields; carriers have tighter limits of their own

	headerSize = 2 + 4
)

// ErrMalformed is wrapped by every error about bytes that are not a canonical list of fields.
var ErrMalformed = errors.New("malformed fields")

// Append adds one field. Tags must rise: the caller appends in the order of its tags.
func Append(dst []byte, tag uint16, value []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, tag)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(value)))
	return append(dst, value...)
}

// Fields is a parsed list. It holds the bytes it was parsed from, which must not change while it is in use.
type Fields struct{ raw []byte }

// Parse checks that b is a canonical list of fields and keeps it. The empty list is one.
func Parse(b []byte) (Fields, error) {
	if len(b) > MaxSize {
		return Fields{}, fmt.Errorf("%w: %d bytes, at most %d", ErrMalformed, len(b), MaxSize)
	}
	last := -1
	count := 0
	for rest := b; len(rest) > 0; count++ {
		if count == MaxFields {
			return Fields{}, fmt.Errorf("%w: more than %d", ErrMalformed, MaxFields)
		}
		if len(rest) < headerSize {
			return Fields{}, fmt.Errorf("%w: %d bytes after the last", ErrMalformed, len(rest))
		}
		tag, n := int(binary.BigEndian.Uint16(rest)), binary.BigEndian.Uint32(rest[2:])
		if tag <= last {
			return Fields{}, fmt.Errorf("%w: tag %d after %d", ErrMalformed, tag, last)
		}
		if uint64(n) > uint64(len(rest)-headerSize) {
			return Fields{}, fmt.Errorf("%w: tag %d has %d of %d bytes", ErrMalformed, tag, len(rest)-headerSize, n)
		}
		last = tag
		rest = rest[headerSize+int(n):]
	}
	return Fields{raw: b}, nil
}

// Raw is what Parse was given.
func (f Fields) Raw() []byte { return f.raw }

// All yields the fields in the order of their tags.
func (f Fields) All() iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for rest := f.raw; len(rest) > 0; {
			tag, n := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint32(rest[2:]))
			value := rest[headerSize : headerSize+n : headerSize+n]
			if !yield(tag, value) {
				return
			}
			rest = rest[headerSize+n:]
		}
	}
}

// Get finds the value of a tag, as a part of the parsed bytes.
func (f Fields) Get(tag uint16) ([]byte, bool) {
	for t, value := range f.All() {
		if t == tag {
			return value, true
		}
		if t > tag {
			break
		}
	}
	return nil, false
}

// AppendList adds one field that holds a list of byte strings. An empty list adds nothing, so that a list has one
// encoding only.
func AppendList[T ~[]byte](dst []byte, tag uint16, items []T) []byte {
	if len(items) == 0 {
		return dst
	}
	size := 0
	for _, item := range items {
		size += 4 + len(item)
	}
	dst = binary.BigEndian.AppendUint16(dst, tag)
	dst = binary.BigEndian.AppendUint32(dst, uint32(size))
	for _, item := range items {
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(item)))
		dst = append(dst, item...)
	}
	return dst
}

// List splits a value that AppendList made into its items, which are parts of value. More than limit items are refused.
func List(value []byte, limit int) ([][]byte, error) {
	var items [][]byte
	for rest := value; len(rest) > 0; {
		if len(items) == limit {
			return nil, fmt.Errorf("%w: a list of more than %d", ErrMalformed, limit)
		}
		if len(rest) < 4 || uint64(binary.BigEndian.Uint32(rest)) > uint64(len(rest)-4) {
			return nil, fmt.Errorf("%w: a list that ends within an item", ErrMalformed)
		}
		n := int(binary.BigEndian.Uint32(rest))
		items = append(items, rest[4:4+n:4+n])
		rest = rest[4+n:]
	}
	return items, nil
}
