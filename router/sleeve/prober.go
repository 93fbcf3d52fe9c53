package sleeve

import "time"

// Times of probing.
const (
	probeBusy   = time.Second     // between probes while packets flow, or while an answer is missing
	probeIdle   = 5 * time.Second // else
	lostAfter   = 2 * time.Second // an answer that late counts as lost; also: not up
	silentAfter = 5 * time.Second // without any answer: the path is dead

	lossWeight = 0.05 // of one probe in the moving average
)

// prober measures a path by numbered questions. It is a pure machine: time comes in as a value.
type prober struct {
	number     uint32
	last       time.Time // newest ordinary probe
	unanswered time.Time // the oldest probe since the last answer; zero when there is none
	asked      [8]question

	srtt, rttvar time.Duration
	loss         float64
}

type question struct {
	number uint32
	at     time.Time // zero: answered, lost, or never asked
}

// due is when the next probe should go out.
func (p *prober) due(busy bool) time.Time {
	if p.last.IsZero() {
		return time.Time{}
	}
	if busy || !p.unanswered.IsZero() {
		return p.last.Add(probeBusy)
	}
	return p.last.Add(probeIdle)
}

// ask returns the number of a new probe.
func (p *prober) ask(now time.Time) uint32 {
	for i := range p.asked {
		if q := &p.asked[i]; !q.at.IsZero() && now.Sub(q.at) >= lostAfter {
			p.lose(q)
		}
	}
	p.number++
	q := &p.asked[p.number%uint32(len(p.asked))]
	if !q.at.IsZero() {
		p.lose(q)
	}
	*q = question{number: p.number, at: now}
	p.last = now
	if p.unanswered.IsZero() {
		p.unanswered = now
	}
	return p.number
}

func (p *prober) lose(q *question) {
	q.at = time.Time{}
	p.loss += (1 - p.loss) * lossWeight
}

// answer takes an echo in; one that was not asked for, or too long ago, is ignored.
func (p *prober) answer(number uint32, now time.Time) {
	q := &p.asked[number%uint32(len(p.asked))]
	if q.number != number || q.at.IsZero() {
		return
	}
	rtt := now.Sub(q.at)
	q.at = time.Time{}
	p.unanswered = time.Time{}
	p.loss -= p.loss * lossWeight
	if p.srtt == 0 { // RFC 6298
		p.srtt, p.rttvar = rtt, rtt/2
		return
	}
	p.rttvar += ((p.srtt - rtt).Abs() - p.rttvar) / 4
	p.srtt += (rtt - p.srtt) / 8
}

// silence is for how long questions have gone without any answer.
func (p *prober) silence(now time.Time) time.Duration {
	if p.unanswered.IsZero() {
		return 0
	}
	return now.Sub(p.unanswered)
}

// moved forgets what belongs to a former path.
func (p *prober) moved() {
	p.srtt, p.rttvar, p.loss = 0, 0, 0
	p.restart()
}

// restart makes a probe due at once.
func (p *prober) restart() {
	p.last, p.unanswered = time.Time{}, time.Time{}
	p.asked = [len(p.asked)]question{}
}
