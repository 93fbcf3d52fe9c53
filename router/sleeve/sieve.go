package sleeve

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"weft/crypto/noise"
)

// A datagram that is received only to be dropped costs some 5 µs, most of it for waking the worker and for the system call. So
// while strangers flood the port the kernel is told to drop most of what they send, by a socket filter. What comes from where
// a peer is, or is said to be, always passes: hence no honest datagrams are judged by a forged one either that the kernel
// has put in front of them, since it puts together only what has one source. Of the rest so many pass that who is new, or has
// just moved, is still taken in. Handshakes that were recorded and are sent over and over are known by their ephemeral keys
// and do not pass at all: then nothing else need be held back.

// class is a sort of datagrams that is sieved by itself, so that a flood of one says nothing about the others.
type class uint8

const (
	classBare    class = iota // handshakes that prove nothing
	classProving              // handshakes with a proof of the sender's address, which may be made up
	classSealed               // sealed, or so they seem
	classForeign              // WireGuard's, if nobody here takes any
	classOther                // the rest: answers to handshakes, and what is nothing at all
	classes
)

// classOf sorts what came over UDP. The filter does the same by program.
func classOf(b []byte) class {
	switch {
	case len(b) == 0:
		return classOther
	case isForeign(b):
		return classForeign
	case b[0]&^(lanes-1) == firstLane:
		return classSealed
	case b[0] != noise.TypeInitiation || len(b) < noise.MinInitiation:
		return classOther
	case noise.Bare(b):
		return classBare
	}
	return classProving
}

const (
	sieveRate   = 2000 // of a class a second that should pass; more of those that prove nothing would not be answered: strangerCookies
	sieveMost   = 1.25 * sieveRate
	sieveLeast  = 0.4 * sieveRate
	sievePeriod = 250 * time.Millisecond
	sieveFinest = 10   // at least 1 of 2^10 passes
	sieveKnown  = 1024 // addresses that always pass
	sieveWords  = 1280 // of them and of recordings: a program has room for so many
)

// holes say how fine the sieve is: of each class one of 2^n passes.
type holes [classes]uint8

// next are the holes after some let so many of each class through within a time.
func (h holes) next(seen [classes]uint32, over time.Duration) holes {
	for c, n := range seen {
		rate := float64(n) / over.Seconds()
		for ; rate > sieveMost && h[c] < sieveFinest; rate /= 2 {
			h[c]++
		}
		for ; rate < sieveLeast && h[c] > 0; rate *= 2 {
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

	at       time.Time
	drops    uint64 // of the kernel, until then
	holes    holes
	recorded []uint32     // handshakes that do not pass at all
	known    []netip.Addr // to whom the filter in place is fitted
}

// saw counts a datagram of a stranger that was worth nothing, or not much.
func (s *sieve) saw(b []byte) {
	if s.seen[classOf(b)].Add(1)%(sieveRate/8) != 0 {
		return
	}
	select {
	case s.rung <- struct{}{}:
	default:
	}
}

// on reports whether anything is held back, and look must be called again though nothing is seen.
func (s *sieve) on() bool { return s.holes != holes{} || len(s.recorded) > 0 }

// due reports whether it is time for a look.
func (s *sieve) due(now time.Time) bool { return now.Sub(s.at) >= sievePeriod }

// look takes a period's counts in, which handshakes come over and over, and what the kernel has dropped in all. It reports
// whether the filter must be fitted anew.
func (s *sieve) look(known []netip.Addr, recorded []uint32, drops uint64, now time.Time) (changed bool) {
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
	was, listed, rate := s.holes, s.recorded, float64(all)/over.Seconds()
	s.holes = was.next(seen, over)
	switch {
	case rate < sieveLeast: // of what the kernel drops nobody sees what it is: these go when nearly nothing is dropped any more
		s.recorded = nil
	case rate > sieveMost && len(recorded) > 0:
		both := slices.Concat(listed, recorded)
		slices.Sort(both)
		if s.recorded = slices.Compact(both); len(s.recorded) > sieveWords-len(known) {
			s.recorded = recorded
		}
	}
	s.recorded = s.recorded[:min(len(s.recorded), sieveWords-len(known))]
	s.rate.Store(0)
	if s.on() {
		s.rate.Store(uint64(rate))
	}
	changed = s.holes != was || !slices.Equal(s.recorded, listed) || s.on() && !slices.Equal(known, s.known)
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
	h.mu.Lock()
	recorded := h.repeats.worst(sieveWords - len(known))
	h.mu.Unlock()
	if !s.look(known, recorded, e.drops[dropFlood].Load(), now) {
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
		err := s.fit(sock)
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

// fit puts the filter on a socket, or takes it away.
func (s *sieve) fit(sock *socket) error {
	if !s.on() {
		return sock.filter(nil)
	}
	err := sock.filter(s.holes.program(sock.v6, s.known, s.recorded))
	if err != nil && len(s.recorded) > 0 { // before Linux 6.8 there is room for some four hundred words
		return sock.filter(s.holes.program(sock.v6, s.known, nil))
	}
	return err
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
