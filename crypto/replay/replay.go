// Package replay tells whether a 64-bit counter was seen before, over a sliding window. It knows nothing of keys or
// packets: let it accept only counters of datagrams that were authenticated.
package replay

// Size is how far behind the highest counter a late one is still accepted.
const Size = 8192

const (
	wordBits = 64
	words    = Size / wordBits
)

// Window remembers which of the last Size counters were accepted: those in (top-Size, top]. The zero value has seen
// nothing. It is not safe for concurrent use.
type Window struct {
	top  uint64
	any  bool          // false until the first Accept, when top means nothing
	seen [words]uint64 // bit c%Size, valid for counters inside the window
}

// Top is the highest counter accepted, and false when there was none.
func (w *Window) Top() (uint64, bool) { return w.top, w.any }

// Refuses reports whether Accept would refuse counter. It may be asked before a datagram is authenticated: what is refused
// would be in any case, and the cost of finding out who sent it is spared.
func (w *Window) Refuses(counter uint64) bool {
	if !w.any || counter > w.top {
		return false
	}
	return w.top-counter >= Size || w.seen[counter/wordBits%words]&(1<<(counter%wordBits)) != 0
}

// Accept reports whether counter is new and not too old, and remembers it. A refused counter changes nothing.
func (w *Window) Accept(counter uint64) bool {
	switch {
	case !w.any:
		w.any = true
		w.top = counter
	case counter > w.top:
		w.forget(w.top+1, counter-w.top)
		w.top = counter
	case w.top-counter >= Size:
		return false
	}
	word, bit := &w.seen[counter/wordBits%words], uint64(1)<<(counter%wordBits)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}

// forget clears the bits of n counters from first on, as the window moves over them.
func (w *Window) forget(first, n uint64) {
	if n >= Size {
		w.seen = [words]uint64{}
		return
	}
	for n > 0 {
		bit := first % wordBits
		k := min(n, wordBits-bit)
		w.seen[first/wordBits%words] &^= (^uint64(0) >> (wordBits - k)) << bit
		first, n = first+k, n-k
	}
}
