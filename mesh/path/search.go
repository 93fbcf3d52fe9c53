package path

import "time"

// Times of measuring the MTU.
const (
	sizeRounds = 3                // of questions, before a size is given up
	sizeTwice  = 2                // how often the size in doubt is asked in each round but the first
	sizeHope   = 8                // waits after the last round, while no size was answered at all
	sizeVerify = time.Minute      // a size that passed is asked again
	sizeBusy   = time.Second / 2  // the same while packets flow
	sizeRaise  = 10 * time.Minute // a smaller one than wanted: try the wanted one again
	halfRaise  = time.Minute      // the same for halves, which cost the most
	sizePause  = 15 * time.Second // after none passed
)

// MinMTU is what every way must carry to be taken by choice: IPv6 inside needs it.
const MinMTU = 1280

// sizes are inner sizes below the wanted one that are worth trying: common underlays less 80. The last is tried in two
// halves, too: those pass wherever an underlay carries 740 bytes.
var sizes = [...]int{8920, 4272, 1420, 1412, 1400, 1380, 1340, 1300, MinMTU}

// trial is one size that is asked.
type trial struct {
	size   int
	halved bool
}

// over reports whether t is better than o.
func (t trial) over(o trial) bool {
	return t.size > o.size || t.size == o.size && !t.halved && o.halved
}

// search finds the largest inner packet that passes, by probes padded to its size, since no word of routers on the way
// can be relied on. When the size in doubt is not answered, all smaller ones are asked together, so that it is known
// within three waits for an answer what a way that got smaller still carries. They are asked after it: that they are
// answered and it is not shows that it is too large, where silence would show no more than a way, or a machine, that is
// slow just now.
//
//	  ┌─────────────── want changes ────────────────┐
//	  v                                             │
//	asking ── the size in doubt is answered ──> passed ── after 1 min, 0.5 s with traffic: asking what passed,
//	  │  │                                          ^     after 10 min below want: asking want
//	  │  └── 3 rounds, smaller ones answered ───────┘
//	  └───── 3 rounds, nothing answered ──> pause, 15 s ──> asking want
type search struct {
	want   int  // 0: nothing to find
	passed int  // 0 while unknown
	halved bool // what passed did so in two halves only

	doubt  trial     // that is asked
	best   trial     // the largest below it that was answered
	round  int       // 0: nothing is asked
	asked  time.Time // when the round began
	first  uint32    // number of the first question
	last   uint32    // and of the newest
	next   time.Time // of the next verification, without traffic
	raise  time.Time // zero: want has not failed
	pause  time.Time // nothing passed: not before
	failed bool      // the last search ended with nothing
}

// wanted says how large packets shall become.
func (m *search) wanted(n int) {
	if n != m.want {
		*m = search{want: n}
	}
}

// restart looks again from the top, after a change of what is behind the way.
func (m *search) restart() { *m = search{want: m.want} }

// again asks soon whether what passed still does.
func (m *search) again() { m.round, m.next = 0, time.Time{} }

// doubted asks soon, unless a question is under way, or nothing passed anyway.
func (m *search) doubted() {
	if m.round == 0 && m.passed > 0 {
		m.next = time.Time{}
	}
}

// due is when there is something to do; false: never.
func (m *search) due(busy bool, patience time.Duration) (time.Time, bool) {
	switch {
	case m.want == 0:
		return time.Time{}, false
	case m.round == sizeRounds && m.best.size == 0:
		return m.asked.Add(sizeHope * patience), true
	case m.round > 0:
		return m.asked.Add(patience), true
	case !m.pause.IsZero():
		return m.pause, true
	case busy && !m.next.IsZero():
		return m.next.Add(sizeBusy - sizeVerify), true
	}
	return m.next, true
}

// ask returns what to probe, if it is time to.
func (m *search) ask(now time.Time, busy bool, patience time.Duration) []trial {
	at, ok := m.due(busy, patience)
	switch {
	case !ok || now.Before(at):
		return nil
	case m.round == sizeRounds:
		m.settle(now)
		return nil
	case m.round == 0:
		m.pause, m.best, m.first, m.last = time.Time{}, trial{}, 0, 0
		if m.doubt = (trial{m.passed, m.halved}); m.passed == 0 || m.short() && !now.Before(m.raise) {
			m.doubt = trial{size: m.want}
		}
	}
	m.round, m.asked = m.round+1, now
	if m.round == 1 {
		return []trial{m.doubt}
	}
	var out []trial
	for range sizeTwice {
		out = append(out, m.doubt)
	}
	for _, s := range sizes {
		if t := (trial{size: s}); m.doubt.over(t) {
			out = append(out, t)
		}
	}
	if t := (trial{MinMTU, true}); m.doubt.over(t) {
		out = append(out, t)
	}
	return out
}

// short reports whether less than what is wanted passed.
func (m *search) short() bool { return m.passed < m.want || m.halved }

// sent tells the number of a question.
func (m *search) sent(number uint32) {
	if m.first == 0 {
		m.first = number
	}
	m.last = number
}

// answer takes an answer in.
func (m *search) answer(number uint32, t trial, now time.Time) {
	const counter = counterMask
	if m.round == 0 || (number-m.first)&counter > (m.last-m.first)&counter {
		return
	}
	switch {
	case t == m.doubt:
		m.pass(t, now)
	case m.doubt.over(t) && t.over(m.best):
		m.best = t
	}
}

// settle ends a search in which the size in doubt was not answered.
func (m *search) settle(now time.Time) {
	if m.best.size > 0 {
		m.raise = time.Time{}
		m.pass(m.best, now)
		return
	}
	m.passed, m.halved, m.round = 0, false, 0
	m.failed, m.pause, m.raise = true, now.Add(sizePause), now.Add(sizeRaise)
}

// pass notes what passed.
func (m *search) pass(t trial, now time.Time) {
	m.passed, m.halved, m.round, m.failed, m.next = t.size, t.halved, 0, false, now.Add(sizeVerify)
	switch {
	case !m.short():
		m.raise = time.Time{}
	case !m.raise.IsZero() && now.Before(m.raise):
	case m.halved:
		m.raise = now.Add(halfRaise)
	default:
		m.raise = now.Add(sizeRaise)
	}
}

// narrow reports whether what passed before is passing no more.
func (m *search) narrow() bool {
	return m.round == sizeRounds && m.best.size > 0 && m.doubt == trial{m.passed, m.halved} || m.want > 0 && m.failed
}
