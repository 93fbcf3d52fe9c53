package mesh

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"weft/crypto/tlv"
)

// listVersion starts a list of items, in the store and on the wire.
//
//	version(1)  then for each item  length(4)  item
const listVersion = tlv.Version(0x10)

var (
	errTruncated = errors.New("ends within an item")
	errTooMany   = fmt.Errorf("more than %d items", maxListed)
)

// maxListed is how many items of one message are looked at: more than good ones can be, and few enough for what is noted of
// each to be no load, where sixteen megabytes may hold millions of tiny ones.
const maxListed = 1 << 17

// itemHead is what an item costs in a list beyond itself.
const itemHead = 4

func appendItem(b, item []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(item))), item...)
}

// listItems yields the items of a list, as parts of b, and at the end what was wrong with the rest, if anything. The
// empty list may be nil.
func listItems(what string, b []byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		if len(b) == 0 {
			return
		}
		if v := tlv.Version(b[0]); v.Major() != listVersion.Major() {
			yield(nil, &tlv.VersionError{What: what, Got: v, Want: listVersion})
			return
		}
		for rest := b[1:]; len(rest) > 0; {
			if len(rest) < 4 || uint64(binary.BigEndian.Uint32(rest)) > uint64(len(rest)-4) {
				yield(nil, fmt.Errorf("%s: %w", what, errTruncated))
				return
			}
			n := int(binary.BigEndian.Uint32(rest))
			if !yield(rest[4:4+n:4+n], nil) {
				return
			}
			rest = rest[4+n:]
		}
	}
}

// received is listItems for a list that came from another node.
func received(what string, b []byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		n := 0
		for raw, err := range listItems(what, b) {
			if n++; n > maxListed {
				yield(nil, fmt.Errorf("%s: %w", what, errTooMany))
				return
			}
			if !yield(raw, err) {
				return
			}
		}
	}
}

// splitList is all items of a list up to the first that cannot be read.
func splitList(list iter.Seq2[[]byte, error]) (items [][]byte, err error) {
	for raw, err := range list {
		if err != nil {
			return items, err
		}
		items = append(items, raw)
	}
	return items, nil
}

// summarize makes one error of many. One about a newer format goes first: it is the one to act on.
func summarize(what string, errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	first := errs[0]
	for _, err := range errs {
		if v := (*tlv.VersionError)(nil); errors.As(err, &v) {
			first = err
			break
		}
	}
	return fmt.Errorf("%d bad %s, the first: %w", len(errs), what, first)
}
