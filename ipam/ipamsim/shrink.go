package ipamsim

import (
	"slices"
	"testing"
)

// mostTries bounds the work of Shrink.
const mostTries = 400

// Shrink takes away what is not needed for the same rule to be broken: steps, in ever smaller runs, and bad weather. The
// time of what is left does not change.
func Shrink(t *testing.T, p Plan, o Options) Plan {
	o.Log = nil
	rule, tries := broken(Play(t, p, o).Err), 0
	still := func(p Plan) bool {
		tries++
		return tries <= mostTries && broken(Play(t, p, o).Err) == rule
	}
	if rule == "" {
		return p
	}
	for run := max(1, len(p.Steps)/2); ; run /= 2 {
		for from := 0; from < len(p.Steps); {
			if q := p.drop(from, from+run); still(q) {
				p = q
			} else {
				from += run
			}
		}
		if run <= 1 {
			break
		}
	}
	for _, calm := range []func(*Weather){
		func(w *Weather) { w.Late = 0 }, func(w *Weather) { w.Twice = 0 }, func(w *Weather) { w.Loss = 0 },
	} {
		q := p
		if calm(&q.Weather); q.Weather != p.Weather && still(q) {
			p = q
		}
	}
	return p
}

// drop is the plan without some steps; their time passes before the next one.
func (p Plan) drop(from, to int) Plan {
	to = min(to, len(p.Steps))
	steps := slices.Clone(p.Steps)
	if to < len(steps) {
		for _, s := range steps[from:to] {
			steps[to].After += s.After
		}
	}
	p.Steps = slices.Delete(steps, from, to)
	return p
}
