package path

import (
	"fmt"
	"time"
)

// The price of a way: what it costs others, and what a stream does to packets that are lost, is paid in time.
const (
	pricePercent = 30 * time.Millisecond // for one percent of loss
	priceRelay   = 20 * time.Millisecond // for each relay
	priceStream  = 100 * time.Millisecond
	// A relay that is reached by a stream pays as a stream to the peer does, which it saves nothing against, and this for the
	// room of others that it takes.
	priceStreamedRelay = 100 * time.Millisecond
)

// cost orders the ways that work.
func (s *Set) cost(w *way) time.Duration {
	return s.price(w, w.prober.srtt) + 4*w.prober.rttvar + time.Duration(w.prober.loss*100*float64(pricePercent))
}

// price is what a round trip costs on a way. Relays pay by the time of the whole way, too: else a long one would never be
// left for a direct one of the same length.
func (s *Set) price(w *way, rtt time.Duration) time.Duration {
	c, streamed := rtt, w.path.TCP
	if w.path.Relayed() {
		c += rtt/2 + time.Duration(len(w.path.Relays()))*priceRelay
		if w.streamed || s.peers != nil && s.peers.path.TCP {
			streamed = true
			c += priceStreamedRelay
		}
	}
	if streamed {
		c += rtt + priceStream
	}
	return c
}

// straightLoss is by how much more a direct way may lose than a detour.
const straightLoss = 0.05

// straighter reports whether a spares a detour that b is, and is no worse when neither end is busy with other things: what a
// loaded machine adds to a few round trips, or one probe that it lost, must not keep a pair on its relay.
func (s *Set) straighter(a, b *way) bool {
	return a.path.Direct() && !b.path.Direct() && a.prober.loss <= b.prober.loss+straightLoss &&
		s.price(a, a.prober.least()) <= s.price(b, b.prober.least())
}

// fit reports whether a way may be taken by choice.
func (s *Set) fit(w *way, now time.Time) bool {
	return w.state(now) == Works && (s.want == 0 || w.size.passed >= MinMTU)
}

// better reports whether a way is better by so much that a change is worth it.
func (s *Set) better(w *way, now time.Time) bool {
	switch a := s.active; {
	case !s.fit(w, now) || now.Before(w.hold), s.straighter(a, w):
		return false
	case !a.proven: // nothing to compare with yet; if nothing comes back it is fled from
		return false
	default:
		return s.straighter(w, a) || s.cost(w) < s.cost(a)*8/10-2*time.Millisecond
	}
}

// choose leaves the active way if it must, or if another was better for long enough.
func (s *Set) choose(now time.Time) {
	a := s.active
	if a == nil || a.state(now) == Suspect || a.state(now) == Dead || a.prober.missing(now) >= suspectMisses {
		s.flee(now)
		return
	}
	if a.prober.missing(now) > 0 {
		s.ready(now)
	}
	var best *way
	for _, w := range s.ways {
		if w != a && w.rounds >= changeRounds && (best == nil || s.cost(w) < s.cost(best)) {
			best = w
		}
	}
	if best != nil {
		s.use(best, now)
	}
}

// flee takes the best way that works, if one does, and tries all others.
func (s *Set) flee(now time.Time) {
	var best *way
	for _, w := range s.ways {
		if w == s.active || w.state(now) != Works || !s.outlives(w, now) {
			continue
		}
		if best == nil || s.fit(w, now) && !s.fit(best, now) || s.fit(w, now) == s.fit(best, now) && s.cost(w) < s.cost(best) {
			best = w
		}
	}
	if !s.Plain && (s.fled.IsZero() || now.Sub(s.fled) >= retryFirst) {
		s.fled = now
		for _, w := range s.ways {
			if w != s.active && w != best && !w.bursts(now) {
				w.begin(now)
			}
		}
	}
	if best == nil {
		return
	}
	if a := s.active; a != nil {
		a.left = now
		a.hold = now.Add(returnAfter << min(a.falls, maxFalls))
		a.falls++
		defer a.begin(now) // it may be back soon
	}
	s.use(best, now)
}

// outlives reports whether a way is known to work while the active one does not. Where answers are missing on that, one must
// have come on this since: else the peer may just be too busy to answer on any, and a way that is fine would be left, and not
// be used again for a while.
func (s *Set) outlives(w *way, now time.Time) bool {
	a := s.active
	if a == nil || a.state(now) == Dead || now.Before(a.lossy) || a.size.narrow() {
		return true
	}
	return w.prober.answered.After(a.prober.unanswered)
}

// ready asks the other ways that work once, so that it is known which do when the active one is suspect.
func (s *Set) ready(now time.Time) {
	for _, w := range s.ways {
		if !s.Plain && w != s.active && s.fit(w, now) && !w.bursts(now) && !w.prober.last.After(s.active.prober.unanswered) {
			w.burstAt, w.burstN = now.Add(-Burst[len(Burst)-1]), len(Burst)-1
		}
	}
}

// A way that carries nothing though probes are answered, twice in a row. Where a little arrives the pods may be sending
// more than fits, which another way would not change.
const (
	carriedMin   = 20 // packets between two answers, or they say nothing
	carriedTwice = 2
	lossyFor     = time.Minute
)

// Carried is told how many packets were sent on the active way between two probes of it, and how many of them arrived.
func (s *Set) Carried(sent, arrived uint32, now time.Time) {
	a := s.active
	switch {
	case a == nil:
		return
	case sent-arrived > sent/4 && sent >= arrived: // perhaps the large ones
		a.size.doubted()
	}
	switch {
	case sent < carriedMin:
		return
	case arrived > 0:
		a.robbed = 0
		return
	}
	if a.robbed++; a.robbed >= carriedTwice {
		a.lossy = now.Add(lossyFor)
		s.choose(now)
	}
}

// Report is what is known about one way.
type Report struct {
	Path   Path
	Active bool
	State  State
	RTT    time.Duration // smoothed; 0 when unknown
	Loss   float64       // of recent probes, 0 to 1
	MTU    int           // largest inner packet that passed, or is hoped to; 0 when unknown
	Reason string        // why it is not used, or what is poor about the active one
}

// Report tells all ways, the active one first.
func (s *Set) Report(now time.Time) []Report {
	out := make([]Report, 0, len(s.ways))
	add := func(w *way) {
		r := Report{
			Path: w.path, Active: w == s.active, State: w.state(now), RTT: w.prober.srtt, Loss: w.prober.loss, MTU: w.mtu(s.want),
		}
		switch {
		case !r.Active:
			r.Reason = s.reason(w, now)
		case w.size.halved:
			r.Reason = fmt.Sprintf("each packet travels in two halves, as %d bytes do not pass in one piece", w.size.passed)
		}
		out = append(out, r)
	}
	if s.active != nil {
		add(s.active)
	}
	for _, w := range s.ways {
		if w != s.active {
			add(w)
		}
	}
	return out
}

// reason says why a way is not the active one.
func (s *Set) reason(w *way, now time.Time) string {
	st := w.state(now)
	switch {
	case w.why != "" && st != Works:
		return w.why
	case st == Untried:
		return "not tried yet"
	case st == Probing:
		return fmt.Sprintf("no answer yet, for %v", w.prober.silence(now).Round(100*time.Millisecond))
	case st == Dead:
		return fmt.Sprintf("no answer for %v", w.prober.silence(now).Round(time.Second))
	case now.Before(w.lossy):
		return "packets are lost though probes are answered"
	case w.size.narrow():
		return fmt.Sprintf("packets of %d bytes do not pass", w.size.doubt.size)
	case st == Suspect:
		return "answers are missing"
	case now.Before(w.hold):
		return fmt.Sprintf("failed %d times lately, so not used for %v more", w.falls, w.hold.Sub(now).Round(time.Second))
	case s.want > 0 && w.size.passed < MinMTU:
		return fmt.Sprintf("no packet of %d bytes has passed yet", MinMTU)
	}
	return fmt.Sprintf("not better by enough (%v, the one in use %v)",
		s.cost(w).Round(100*time.Microsecond), s.cost(s.active).Round(100*time.Microsecond))
}
