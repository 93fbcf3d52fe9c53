package path

import "time"

// Times of probing.
const (
	probeBusy  = time.Second            // between probes of the active way while packets flow
	probeIdle  = 5 * time.Second        // else
	probeAgain = 300 * time.Millisecond // after a missing answer
	graceMin   = 150 * time.Millisecond // bounds of the time after which an answer counts as missing
	graceMax   = time.Second

	// LostAfter is when an answer that is late counts as lost; a way that is silent for so long is not up.
	LostAfter = 2 * time.Second
	// DeadAfter is how long a way without any answer is hoped for.
	DeadAfter = 5 * time.Second

	suspectMisses  = 2
	missesOfOutage = 4
	lossWeight     = 0.05 // of one probe in the moving average
	seldomWeight   = 0.2  // where probes are far between
)

// prober measures one way by numbered questions.
type prober struct {
	last       time.Time // newest question; zero: one is due
	unanswered time.Time // the oldest question since the last answer; zero when there is none
	answered   time.Time // newest answer
	gone       int       // questions since then that nobody waits for any more
	asked      [8]question
	next       int // slot of asked

	srtt, rttvar time.Duration
	recent       [4]time.Duration // newest round trips; 0: none
	answers      int
	loss         float64
	seldom       bool // it is not the active way
}

type question struct {
	number uint32
	at     time.Time // zero: answered, lost, or never asked
}

// due is when the active way wants its next question.
func (p *prober) due(busy bool) time.Time {
	switch {
	case p.last.IsZero():
		return time.Time{}
	case !p.unanswered.IsZero():
		// Until it is clear that answers are missing, then as if there were traffic.
		if p.last.Sub(p.unanswered) < LostAfter {
			return p.last.Add(max(p.grace(), probeAgain))
		}
		return p.last.Add(probeBusy)
	case busy:
		return p.last.Add(probeBusy)
	}
	return p.last.Add(probeIdle)
}

// grace is how long an answer may take.
func (p *prober) grace() time.Duration {
	if p.srtt == 0 {
		return graceMax
	}
	return min(max(2*p.srtt+4*p.rttvar, graceMin), graceMax)
}

// ask notes a question.
func (p *prober) ask(number uint32, now time.Time) {
	for i := range p.asked {
		if q := &p.asked[i]; !q.at.IsZero() && now.Sub(q.at) >= LostAfter {
			p.lose(q)
		}
	}
	q := &p.asked[p.next]
	p.next = (p.next + 1) % len(p.asked)
	if !q.at.IsZero() {
		p.lose(q)
	}
	*q = question{number: number, at: now}
	p.last = now
	if p.unanswered.IsZero() {
		p.unanswered = now
	}
}

func (p *prober) lose(q *question) {
	if !p.unanswered.IsZero() && !q.at.Before(p.unanswered) {
		p.gone++
	}
	q.at = time.Time{}
	p.loss += (1 - p.loss) * p.weight()
}

// answer takes an answer in; one that was not asked for, or too long ago, is ignored.
func (p *prober) answer(number uint32, now time.Time) bool {
	for i := range p.asked {
		q := &p.asked[i]
		if q.number != number || q.at.IsZero() {
			continue
		}
		rtt := max(now.Sub(q.at), 1)
		p.recent[p.answers%len(p.recent)] = rtt
		p.answers++
		if p.answered.IsZero() || p.silence(now) >= DeadAfter { // it has just opened: what was sent before says nothing about it
			p.loss = 0
			p.forget(q.at)
		}
		q.at, p.unanswered, p.answered, p.gone = time.Time{}, time.Time{}, now, 0
		p.loss -= p.loss * p.weight()
		if p.srtt == 0 { // as RFC 6298, but a first answer is worth more: there is nothing to retransmit
			p.srtt, p.rttvar = rtt, rtt/8
			return true
		}
		p.rttvar += ((p.srtt - rtt).Abs() - p.rttvar) / 4
		p.srtt += (rtt - p.srtt) / 8
		return true
	}
	return false
}

// least is the shortest of the newest round trips.
func (p *prober) least() time.Duration {
	least := p.srtt
	for _, r := range p.recent {
		if r != 0 {
			least = min(least, r)
		}
	}
	return least
}

// forget drops questions that were asked before.
func (p *prober) forget(before time.Time) {
	for i := range p.asked {
		if p.asked[i].at.Before(before) {
			p.asked[i].at = time.Time{}
		}
	}
}

// missing counts the questions since the last answer whose answer is overdue.
func (p *prober) missing(now time.Time) int {
	n := p.gone
	for _, q := range p.asked {
		if !q.at.IsZero() && !p.unanswered.IsZero() && !q.at.Before(p.unanswered) && now.Sub(q.at) >= p.grace() {
			n++
		}
	}
	return n
}

// overdue is when missing will rise next; zero: never.
func (p *prober) overdue(now time.Time) time.Time {
	var next time.Time
	for _, q := range p.asked {
		if q.at.IsZero() || p.unanswered.IsZero() || q.at.Before(p.unanswered) {
			continue
		}
		if t := q.at.Add(p.grace()); t.After(now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next
}

// weight is that of one probe in the moving average of the loss: more where there are few.
func (p *prober) weight() float64 {
	if p.seldom {
		return seldomWeight
	}
	return lossWeight
}

// silence is for how long questions have gone without any answer.
func (p *prober) silence(now time.Time) time.Duration {
	if p.unanswered.IsZero() {
		return 0
	}
	return now.Sub(p.unanswered)
}

// restart makes a question due at once and forgets those under way.
func (p *prober) restart() {
	p.last, p.unanswered, p.gone = time.Time{}, time.Time{}, 0
	p.asked = [len(p.asked)]question{}
}
