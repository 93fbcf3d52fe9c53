package sleeve

import (
	"cmp"
	"encoding/binary"
	"slices"
)

const (
	repeatMost  = 128  // copies of one handshake: a burst sends it five times to each address that is tried
	repeatTable = 1024 // handshakes that are remembered
)

// repeats tells handshakes that were recorded, and are sent over and over, from others. Each has an ephemeral key that is made
// for it alone, and a recording in which that is changed has a wrong mac: so the key's first bytes are as good as all of it. The
// zero value is ready.
type repeats struct {
	seen map[uint32]uint // copies, by the first bytes of the ephemeral key
}

// again counts an initiation of a stranger. It reports whether there were too many of it for an honest one.
func (r *repeats) again(b []byte) bool {
	word := binary.BigEndian.Uint32(b[sieveKey-sieveHeader:])
	n, seen := r.seen[word]
	switch {
	case r.seen == nil:
		r.seen = make(map[uint32]uint)
	case !seen && len(r.seen) >= repeatTable:
		r.fade()
		return false
	}
	r.seen[word] = n + 1
	return n >= repeatMost
}

// fade makes room: what comes more often than once in repeatTable others stays, and none is ever counted too often. Each copy
// is taken back once at most, so this costs no more than counting.
func (r *repeats) fade() {
	for word, n := range r.seen {
		if n == 1 {
			delete(r.seen, word)
		} else {
			r.seen[word] = n - 1
		}
	}
}

// worst are those that come most, at most so many of them, in order.
func (r *repeats) worst(most int) (words []uint32) {
	for word, n := range r.seen {
		if n > repeatMost {
			words = append(words, word)
		}
	}
	if len(words) > most {
		slices.SortFunc(words, func(a, b uint32) int { return cmp.Or(cmp.Compare(r.seen[b], r.seen[a]), cmp.Compare(a, b)) })
		words = words[:most]
	}
	slices.Sort(words)
	return words
}
