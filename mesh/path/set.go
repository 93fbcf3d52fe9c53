package path

import (
	"net/netip"
	"slices"
	"time"

	"weft/mesh/peer"
)

// Limits of one Set.
const (
	maxWays  = 32 // the slot has five bits in a probe's number
	maxHeard = 8  // ways that were not asked for
)

// Times of keeping ways that are not in use.
const (
	retryFirst   = 5 * time.Second // after a way died
	retryBusy    = 30 * time.Second
	retryIdle    = 10 * time.Minute
	refreshBusy  = 15 * time.Second // of one that works
	refreshIdle  = time.Minute
	forgetAfter  = time.Minute      // a way that is not wanted and silent
	returnAfter  = 10 * time.Second // a way that was left is not taken again so soon; doubling each time
	maxFalls     = 5                // doublings
	forgive      = 10 * time.Minute // of use until they are forgotten
	testGap      = time.Second      // between bursts that probes of the peer bring about
	changeRounds = 3                // in which another way must be better
	doubtGap     = time.Second      // until a direct way that is not better than a detour is measured again; doubling
	maxDoubts    = 5                // doublings
	roundGap     = 50 * time.Millisecond
)

// Burst is when the datagrams of a burst go out, after its begin.
var Burst = [...]time.Duration{0, 50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond}

// Bits of a probe's number: who answers repeats it, and only we read it. Test is read by the peer too.
const (
	NumberSize = 1 << 31 // asks whether its size passes: its loss says nothing about the way
	NumberTest = 1 << 30 // tries a way that is not in use: who hears it does not follow
	NumberHalf = 1 << 29 // was sent in two halves

	slotShift   = 24
	slotMask    = maxWays - 1
	counterMask = 1<<slotShift - 1
)

// Ask is a probe to be sent.
type Ask struct {
	Path   Path
	Number uint32
	Size   int  // inner size to which it is padded; 0: not
	Halved bool // it travels in two datagrams
}

// Set is all ways to one peer. The zero value knows none. It is not safe for concurrent use.
type Set struct {
	// Plain says that the peer's build answers where it last heard data from: only the active way can be probed.
	Plain bool

	ways    []*way
	active  *way
	peers   *way // where the peer's own packets come from
	want    int  // largest inner packet
	counter uint32
	fled    time.Time // when all ways were tried since the active one was bad
	quiet   time.Time // the oldest question since the last answer on any way; zero when there is none
}

// way is one path and what is known about it.
type way struct {
	path     Path
	slot     uint32
	wanted   bool
	streamed bool // the first relay is reached by a stream

	prober prober
	size   search
	proven bool      // answered since it was tried anew
	heard  time.Time // the last datagram that came this way
	left   time.Time // when it was left because it was suspect
	hold   time.Time // not taken by choice before
	falls  int       // how often it was left, and did not hold for forgive since
	used   time.Time // when it became active
	why    string    // a relay's reason for not carrying

	burstAt time.Time // begin of a burst, perhaps one to come; zero: none is under way
	burstN  int       // probes of it that were sent
	retries int       // since the last answer
	rounds  int       // in which it was better than the active way
	doubts  int       // bursts since it was not, though it is direct and the active way a detour
	lossy   time.Time // until when packets count as lost on it, though probes are answered
	robbed  int       // times in a row that what it carried was lost
}

// Want makes the wanted ways exactly these, best first. Those that are new are tried at once. A relayed way that is not
// wanted and that usable refuses is gone at once, whatever it carries. It reports whether there are new ones.
func (s *Set) Want(paths []Path, usable func(Path) bool, now time.Time) (fresh bool) {
	for _, w := range s.ways {
		w.wanted = false
	}
	for _, p := range paths {
		if p.IsZero() {
			continue
		}
		w := s.find(p)
		if w == nil {
			if w = s.add(p); w == nil {
				break
			}
			fresh = true
		}
		w.wanted = true
	}
	s.ways = slices.DeleteFunc(s.ways, func(w *way) bool {
		gone := !w.wanted && (w.path.Relayed() || w.path.TCP) && !usable(w.path)
		if gone {
			s.lose(w)
		}
		return gone
	})
	s.choose(now)
	return fresh
}

// lose forgets a way that is gone.
func (s *Set) lose(w *way) {
	if s.active == w {
		s.active = nil
	}
	if s.peers == w {
		s.peers = nil
	}
}

// Streamed tells of each relayed way whether its first relay is reached by a stream.
func (s *Set) Streamed(by func(Path) bool) {
	for _, w := range s.ways {
		w.streamed = w.path.Relayed() && by(w.path)
	}
}

// WantMTU says how large packets shall become. What was reported as passing comes back from whoever makes routes of it,
// and is no news.
func (s *Set) WantMTU(n int) {
	if n > 0 && n < s.want && s.active != nil && n == s.active.mtu(s.want) {
		return
	}
	s.want = n
	for _, w := range s.ways {
		w.size.wanted(w.goal(n))
	}
}

// goal is the largest inner packet that is hoped for on a way. What does not pass in one piece may in two.
func (w *way) goal(want int) int {
	if want == 0 {
		return 0
	}
	return max(want-w.path.Overhead(), min(want, MinMTU))
}

// mtu is what to tell of a way: what passed, or less than wanted where that is known beforehand.
func (w *way) mtu(want int) int {
	if w.size.passed == 0 && w.path.Overhead() > 0 {
		return w.goal(want)
	}
	return w.size.passed
}

func (s *Set) find(p Path) *way {
	for _, w := range s.ways {
		if w.path == p {
			return w
		}
	}
	return nil
}

// add makes a way, in the place of the least useful one if there is no room; nil: there is none to be had.
func (s *Set) add(p Path) *way {
	if len(s.ways) >= maxWays {
		return nil
	}
	var taken uint32
	for _, w := range s.ways {
		taken |= 1 << w.slot
	}
	w := &way{path: p}
	for taken>>w.slot&1 == 1 {
		w.slot++
	}
	w.size.wanted(w.goal(s.want))
	s.ways = append(s.ways, w)
	return w
}

// admit makes a way for where the peer is heard from. Such ways are bounded: the one that was silent longest goes.
func (s *Set) admit(p Path) *way {
	var oldest *way
	n := 0
	for _, w := range s.ways {
		if w.wanted {
			continue
		}
		n++
		if w != s.active && (oldest == nil || w.heard.Before(oldest.heard)) {
			oldest = w
		}
	}
	if (n >= maxHeard || len(s.ways) >= maxWays) && oldest != nil {
		s.lose(oldest)
		s.ways = slices.DeleteFunc(s.ways, func(w *way) bool { return w == oldest })
	}
	return s.add(p)
}

// Heard is told of an authentic datagram that came on p, newer than any before. test says that it was a probe by which
// the peer tries a way. It reports whether the active way changed.
func (s *Set) Heard(p Path, test bool, now time.Time) (moved bool) {
	w := s.find(p)
	if w == nil {
		if w = s.admit(p); w == nil {
			return false
		}
	}
	w.heard = now
	if !test {
		s.peers = w
	}
	st := w.state(now)
	if st == Works || st == Suspect || w == s.active {
		if test || w == s.active || s.active != nil && s.active.state(now) == Works || st == Suspect {
			return false
		}
	}
	if w != s.active && !s.Plain && (!w.bursts(now) || now.Sub(w.burstAt) >= testGap) {
		w.begin(now) // whatever stood between may let us through now
	}
	if test || !w.left.IsZero() && now.Sub(w.left) < returnAfter {
		return false
	}
	s.use(w, now)
	return true
}

// Established is told that a session was made over p. It becomes active unless what is active works.
func (s *Set) Established(p Path, now time.Time) {
	w := s.find(p)
	if w == nil {
		if w = s.admit(p); w == nil {
			return
		}
	}
	w.heard = now
	s.quiet = time.Time{}
	if a := s.active; a == nil || a == w || a.state(now) != Works || now.Sub(a.prober.answered) > LostAfter {
		s.use(w, now)
	}
	s.active.prober.restart() // the first probe confirms the keys to the peer
	for _, w := range s.ways {
		if w != s.active && w.state(now) != Works {
			w.begin(now)
		}
	}
}

// use makes w active.
func (s *Set) use(w *way, now time.Time) {
	if s.active == w {
		return
	}
	for _, o := range s.ways {
		o.rounds = 0
	}
	if a := s.active; a != nil && now.Sub(a.used) >= forgive {
		a.falls = 0
	}
	s.active, w.used, w.robbed = w, now, 0
	w.burstAt = time.Time{}
	if w.state(now) != Works {
		w.prober.srtt, w.prober.rttvar, w.prober.loss = 0, 0, 0
		w.prober.recent = [len(w.prober.recent)]time.Duration{}
		w.proven = false
		w.size.restart()
	}
	w.prober.restart()
	w.size.again() // on what carries packets now
}

// begin starts a burst.
func (w *way) begin(now time.Time) {
	w.burstAt, w.burstN, w.doubts = now, 0, 0
	if w.size.failed { // there is news, so sizes are tried again, too
		w.size.restart()
	}
}

// bursts reports whether a burst is under way.
func (w *way) bursts(now time.Time) bool { return !w.burstAt.IsZero() && !w.burstAt.After(now) }

// Punch tries addresses of the peer now, at the same time as the peer tries ours.
func (s *Set) Punch(endpoints []netip.AddrPort, now time.Time) {
	for _, ep := range endpoints[:min(len(endpoints), MaxPunch)] {
		p := Direct(ep)
		w := s.find(p)
		if w == nil {
			if w = s.admit(p); w == nil {
				return
			}
			w.heard = now // keeps it for a minute
		}
		if w != s.active {
			w.begin(now)
		}
	}
}

// Refused is told by a relay that it carries nothing to the peer.
func (s *Set) Refused(relay peer.ID, why string, now time.Time) {
	for _, w := range s.ways {
		if w.path.Via[0] == relay {
			w.why = why
			w.proven = false
			w.prober.unanswered = now.Add(-DeadAfter)
		}
	}
	s.choose(now)
}

// Active is the way that packets take; zero: there is none.
func (s *Set) Active() Path {
	if s.active == nil {
		return Path{}
	}
	return s.active.path
}

// Halved reports whether packets pass on the active way in two halves only.
func (s *Set) Halved() bool { return s.active != nil && s.active.size.halved }

// Targets are the ways for a handshake, the active one first.
func (s *Set) Targets() []Path {
	all := make([]Path, 0, len(s.ways))
	if s.active != nil {
		all = append(all, s.active.path)
	}
	for _, w := range s.ways {
		if w != s.active {
			all = append(all, w.path)
		}
	}
	return all
}

// Len is how many ways there are.
func (s *Set) Len() int { return len(s.ways) }

// MTU is the largest inner packet that is wanted.
func (s *Set) MTU() int { return s.want }

// Silence is for how long questions have gone unanswered on the active way.
func (s *Set) Silence(now time.Time) time.Duration {
	if s.active == nil {
		return 0
	}
	return s.active.prober.silence(now)
}

// Quiet is since when questions have gone unanswered on every way; zero: some were answered since.
func (s *Set) Quiet() time.Time { return s.quiet }

// Forget ends all that is under way, when there is no session to probe with any more. What was measured stays.
func (s *Set) Forget() {
	for _, w := range s.ways {
		w.prober.restart()
		w.size.restart()
		w.proven, w.burstAt = false, time.Time{}
	}
	s.quiet = time.Time{}
}
