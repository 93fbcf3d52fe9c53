package sleeve

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/net/bpf"

	"weft/crypto/noise"
)

// A datagram that is received only to be dropped costs some 5 µs, most of it for waking the worker and for the system call. So
// while strangers flood the port the kernel is told to drop most of what they send, by a socket filter. What comes from where
// a peer is, or is said to be, always passes: hence no honest datagrams are judged by a forged one either that the kernel
// has put in front of them, since it puts together only what has one source. Of the rest so many pass that who is new, or has
// just moved, is still taken in.

// class is a sort of datagrams that is sieved by itself, so that a flood of one says nothing about the others.
type class uint8

const (
	classBare    class = iota // handshakes that prove nothing
	classProving              // handshakes with a proof of the sender's address, which may be made up
	classSealed               // sealed, or so they seem
	classOther                // the rest: answers to handshakes, and what is nothing at all
	classes
)

// classOf sorts what came over UDP; false for WireGuard's, which are never sieved. The filter does the same by program.
func classOf(b []byte) (class, bool) {
	switch {
	case len(b) == 0:
		return classOther, true
	case b[0] >= 1 && b[0] <= maxForeign:
		return 0, false
	case b[0]&^(lanes-1) == firstLane:
		return classSealed, true
	case b[0] != noise.TypeInitiation || len(b) < noise.MinInitiation:
		return classOther, true
	case noise.Bare(b):
		return classBare, true
	}
	return classProving, true
}

const (
	sieveRate   = 4000 // of a class a second that should pass
	sievePeriod = 250 * time.Millisecond
	sieveMax    = 10   // at least 1 of 2^10 passes
	sieveKnown  = 1024 // addresses that always pass; kernels differ in how long a program may be
)

// holes say how fine the sieve is: of each class one of 2^n passes.
type holes [classes]uint8

// next are the holes after some let so many of each class through within a time.
func (h holes) next(seen [classes]uint32, over time.Duration) holes {
	for c, n := range seen {
		rate := float64(n) / over.Seconds()
		for ; rate > 1.25*sieveRate && h[c] < sieveMax; rate /= 2 {
			h[c]++
		}
		for ; rate < 0.4*sieveRate && h[c] > 0; rate *= 2 {
			h[c]--
		}
	}
	return h
}

// sieve counts what strangers send and decides how much of it passes. The counters belong to the receive workers, the rest
// to the goroutine that calls look.
type sieve struct {
	seen [classes]atomic.Uint32
	rung chan struct{} // enough was seen for a look
	rate atomic.Uint64 // of what strangers send, datagrams a second; 0 while nothing is held back

	at    time.Time
	drops uint64 // of the kernel, until then
	holes holes
	known []netip.Addr // to whom the filter in place is fitted
}

// saw counts a datagram of a stranger that was worth nothing, or not much.
func (s *sieve) saw(b []byte) {
	c, ok := classOf(b)
	if !ok || s.seen[c].Add(1)%(sieveRate/8) != 0 {
		return
	}
	select {
	case s.rung <- struct{}{}:
	default:
	}
}

// on reports whether anything is held back, and look must be called again though nothing is seen.
func (s *sieve) on() bool { return s.holes != holes{} }

// due reports whether it is time for a look.
func (s *sieve) due(now time.Time) bool { return now.Sub(s.at) >= sievePeriod }

// look takes a period's counts in, and what the kernel has dropped in all. It reports whether the filter must be fitted anew.
func (s *sieve) look(known []netip.Addr, drops uint64, now time.Time) (changed bool) {
	if !s.due(now) {
		return false
	}
	over, all := now.Sub(s.at), drops-s.drops
	s.at, s.drops = now, drops
	var seen [classes]uint32
	for c := range seen {
		seen[c] = s.seen[c].Swap(0)
		all += uint64(seen[c])
	}
	if over > 4*sievePeriod && !s.on() {
		return false // counted over a time of which most was calm
	}
	was := s.holes
	s.holes = was.next(seen, over)
	s.rate.Store(0)
	if s.on() {
		s.rate.Store(uint64(float64(all) / over.Seconds()))
	}
	changed = s.holes != was || s.on() && !slices.Equal(known, s.known)
	s.known = known
	return changed
}

// sift has the kernel drop what the sieve holds back; it reports whether that has changed.
func (h *handshakes) sift(now time.Time) bool {
	e, s := h.e, &h.sieve
	if !s.due(now) {
		return false
	}
	e.countUnseen()
	known, was := h.familiar.Load().listed, s.on()
	if !s.look(known, e.drops[dropFlood].Load(), now) {
		return false
	}
	socks := e.sockets.Load()
	if socks == nil {
		return true
	}
	for _, sock := range []*socket{socks.v4, socks.v6} {
		if sock == nil {
			continue
		}
		var program []bpf.Instruction
		if s.on() {
			program = s.holes.program(sock.v6, known)
		}
		err := sock.filter(program)
		sock.unseen.sieve(err == nil && s.on())
		if err != nil {
			e.log.Debug("no filter on the weft port", "err", err)
		}
	}
	switch on := s.on(); {
	case on && !was:
		e.log.Warn("strangers flood the weft port, most of what they send is dropped unseen")
	case was && !on:
		e.log.Info("no more flood of strangers")
	}
	return true
}

// listed are the addresses that a filter lets through: those of sessions first, if there is no room for all.
func listed(sessions, candidates []netip.Addr) (all []netip.Addr) {
	for _, from := range [][]netip.Addr{sessions, candidates} {
		slices.SortFunc(from, netip.Addr.Compare)
		from = slices.Compact(from)
		all = append(all, from[:min(len(from), sieveKnown-len(all))]...)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}
