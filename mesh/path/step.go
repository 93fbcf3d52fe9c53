package path

import "time"

// state is derived from what was asked and answered.
func (w *way) state(now time.Time) State {
	p := &w.prober
	switch {
	case p.unanswered.IsZero() && !w.proven:
		return Untried
	case p.silence(now) >= DeadAfter:
		return Dead
	case !w.proven:
		return Probing
	case p.missing(now) >= suspectMisses, now.Before(w.lossy), w.size.narrow():
		return Suspect
	}
	return Works
}

// Step does what is due and returns when it wants to be called again; zero is never. busy says that packets flow. There
// must be a session: without one nothing can be probed.
func (s *Set) Step(now time.Time, busy bool, out []Ask) ([]Ask, time.Time) {
	var wake time.Time
	at := func(t time.Time) {
		if wake.IsZero() || t.Before(wake) {
			wake = t
		}
	}
	s.expire(now)
	s.choose(now)
	for _, w := range s.ways {
		due, ok := s.due(w, busy)
		if ok && !now.Before(due) {
			out = append(out, s.ask(w, now))
			due, ok = s.due(w, busy)
		}
		if ok {
			at(due)
		}
		if !s.sizes(w, now) {
			continue
		}
		patience := w.prober.grace()
		for _, t := range w.size.ask(now, busy && w == s.active, patience) {
			n := s.number(w) | NumberSize
			if t.halved {
				n |= NumberHalf
			}
			w.size.sent(n)
			out = append(out, Ask{w.path, n, t.size, t.halved})
		}
		if t, ok := w.size.due(busy && w == s.active, patience); ok {
			at(t)
		}
	}
	if a := s.active; a != nil && !a.prober.unanswered.IsZero() { // to leave it in time
		if t := a.prober.overdue(now); !t.IsZero() {
			at(t)
		}
	}
	return out, wake
}

// sizes reports whether it is time to measure the size of a way. Else nothing passes, whatever its size, or it is enough
// to know what passed when it was tried.
func (s *Set) sizes(w *way, now time.Time) bool {
	if w.prober.silence(now) >= LostAfter {
		return false
	}
	return w == s.active || w.proven && w.state(now) != Dead && (w.size.passed == 0 || w.size.narrow())
}

// due is when a way wants its next probe; false: never.
func (s *Set) due(w *way, busy bool) (time.Time, bool) {
	if w == s.active {
		return w.prober.due(busy), true
	}
	if s.Plain {
		return time.Time{}, false
	}
	if !w.burstAt.IsZero() {
		return w.burstAt.Add(Burst[w.burstN]), true
	}
	p := &w.prober
	if p.last.IsZero() {
		return time.Time{}, true
	}
	gap := refreshIdle
	switch {
	case w.proven && p.unanswered.IsZero() && busy:
		gap = refreshBusy
	case w.proven && p.unanswered.IsZero():
	case w.proven && w.retries < suspectMisses:
		gap = probeBusy
	case w.retries <= len(Burst):
		gap = retryFirst
	case busy:
		gap = retryBusy
	default:
		gap = retryIdle
	}
	return p.last.Add(gap), true
}

// ask makes the next probe of a way.
func (s *Set) ask(w *way, now time.Time) Ask {
	switch {
	case !w.burstAt.IsZero() && w != s.active:
		if w.burstN++; w.burstN == len(Burst) {
			w.burstAt, w.burstN = time.Time{}, 0
		}
	case w != s.active && !w.proven && w.prober.last.IsZero():
		w.begin(now)
		w.burstN = 1
	}
	n := s.number(w)
	w.retries++
	w.prober.seldom = w != s.active
	w.prober.ask(n&^NumberTest, now)
	if s.quiet.IsZero() {
		s.quiet = now
	}
	return Ask{Path: w.path, Number: n}
}

// number is that of a new probe.
func (s *Set) number(w *way) uint32 {
	s.counter++
	n := w.slot<<slotShift | s.counter&counterMask
	if w != s.active {
		n |= NumberTest
	}
	return n
}

// Answer takes the answer to a probe in. It reports whether the active way changed.
func (s *Set) Answer(number uint32, size int, now time.Time) (moved bool) {
	slot := number >> slotShift & slotMask
	var w *way
	for _, o := range s.ways {
		if o.slot == slot {
			w = o
		}
	}
	if w == nil {
		return false
	}
	before := s.active
	if number&NumberSize != 0 {
		w.size.answer(number, trial{size, number&NumberHalf != 0}, now)
	} else if !w.prober.answer(number&^NumberTest, now) {
		return false
	} else {
		if w.retries > missesOfOutage { // it was down, which says nothing about how much it loses when it is up
			w.prober.loss = 0
		}
		w.proven, w.retries, w.why = true, 0, ""
		s.quiet = time.Time{}
	}
	s.round(w, now)
	s.choose(now)
	return s.active != before
}

// round counts in how many rounds on end a way was better than the active one.
func (s *Set) round(w *way, now time.Time) {
	if s.active == nil || w == s.active || !s.better(w, now) {
		w.rounds = 0
		s.doubt(w, now)
		return
	}
	if w.rounds++; w.rounds < changeRounds && w.burstAt.IsZero() { // no reason to wait for the next refresh
		w.burstAt, w.burstN = now.Add(roundGap-Burst[len(Burst)-1]), len(Burst)-1
	}
}

// doubt plans to measure a direct way again that loses against a detour: that may have been chance, of a machine that was busy
// or a packet that was late, and the next refresh is far. One that failed is measured as soon as it may be used again.
func (s *Set) doubt(w *way, now time.Time) {
	a := s.active
	switch {
	case a == nil || a == w || a.path.Direct() || !w.path.Direct() || !w.proven || !w.burstAt.IsZero():
	case now.Before(w.hold):
		w.burstAt, w.burstN = w.hold, 0
	case w.doubts < maxDoubts:
		w.burstAt, w.burstN = now.Add(doubtGap<<w.doubts), 0
		w.doubts++
	}
}

// expire forgets ways that nobody wants and where nobody is heard.
func (s *Set) expire(now time.Time) {
	kept := s.ways[:0]
	for _, w := range s.ways {
		if w.wanted || w == s.active || now.Sub(w.heard) < forgetAfter || w.state(now) == Works && now.Sub(w.prober.answered) < forgetAfter {
			kept = append(kept, w)
		} else {
			s.lose(w)
		}
	}
	clear(s.ways[len(kept):])
	s.ways = kept
}
