package path

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// only is a world with one way, in use, on which packets of full size pass.
func only(t rapid.TB, r *road) *world {
	w := newWorld(t)
	w.set.WantMTU(1420)
	w.roads[addr(1)] = r
	w.want()
	w.set.Established(addr(1), w.now)
	w.run(time.Minute, nil)
	return w
}

func (w *world) mtu() int { return w.set.Report(w.now)[0].MTU }

// TestAPathThatShrinksIsFoundSoon, whatever it shrinks to, and at whatever moment. Halves are the last resort.
func TestAPathThatShrinksIsFoundSoon(t *testing.T) {
	for _, c := range []struct {
		size, want int
		halved     bool
	}{{1350, 1340, false}, {1320, 1300, false}, {1299, 1280, false}, {1279, 1280, true}, {1200, 1280, true}, {640, 1280, true}} {
		for _, offset := range []time.Duration{0, 350 * time.Millisecond, 999 * time.Millisecond} {
			t.Run(fmt.Sprintf("%d after %v", c.size, offset), func(t *testing.T) {
				r := &road{up: true, rtt: 5 * time.Millisecond}
				w := only(t, r)
				w.run(offset, nil)
				if w.mtu() != 1420 || w.set.Halved() {
					t.Fatalf("MTU %d at first", w.mtu())
				}
				r.size = c.size
				took, began := time.Duration(0), w.now
				w.run(5*time.Second, func() {
					if took == 0 && w.mtu() == c.want && w.set.Halved() == c.halved {
						took = w.now.Sub(began)
					}
				})
				if took == 0 || took > 1300*time.Millisecond {
					t.Errorf("found after %v: %+v", took, w.set.Report(w.now)[0])
				}
				if got := w.set.Report(w.now)[0].State; got != Works {
					t.Errorf("then it %v", got)
				}
				if got := w.set.Report(w.now)[0].Reason != ""; got != c.halved {
					t.Errorf("a reason is given: %v", got)
				}
				r.size = 0
				w.run(sizeRaise+time.Second, nil)
				if w.mtu() != 1420 || w.set.Halved() {
					t.Errorf("MTU %d, halved %v after it grew again", w.mtu(), w.set.Halved())
				}
			})
		}
	}
}

// TestLossShowsThatPacketsAreTooLarge sooner than the next question about them would.
func TestLossShowsThatPacketsAreTooLarge(t *testing.T) {
	r := &road{up: true, rtt: 5 * time.Millisecond}
	w := only(t, r)
	w.run(250*time.Millisecond, nil) // between two questions
	r.size = 1300
	w.set.Carried(4, 1, w.now)
	w.run(600*time.Millisecond, nil)
	if w.mtu() != 1300 {
		t.Errorf("MTU %d", w.mtu())
	}
}

// TestLossIsNotTakenForAnMTU: where large and small are lost alike, the size stays.
func TestLossIsNotTakenForAnMTU(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &road{up: true, rtt: 5 * time.Millisecond}
		w := only(t, r)
		lost := false // a size in doubt is asked twice in a row, so never two
		w.random = func() float64 {
			if lost = !lost && rapid.Bool().Draw(t, "lost"); lost {
				return 0
			}
			return 1
		}
		r.loss = 0.5
		w.run(time.Minute, func() {
			if got := w.mtu(); got != 1420 {
				t.Fatalf("MTU %d", got)
			}
		})
	})
}

// TestSlownessIsNotTakenForAnMTU: answers that come late, all of them, say nothing about sizes.
func TestSlownessIsNotTakenForAnMTU(t *testing.T) {
	r := &road{up: true, rtt: time.Millisecond}
	w := only(t, r)
	for _, late := range []time.Duration{200 * time.Millisecond, 700 * time.Millisecond, 1500 * time.Millisecond} {
		r.rtt = late
		w.run(3*time.Second, func() {
			if got := w.mtu(); got != 1420 || w.set.ways[0].size.narrow() {
				t.Fatalf("MTU %d as answers take %v: %+v", got, late, w.set.Report(w.now)[0])
			}
		})
		r.rtt = time.Millisecond
		w.run(time.Minute, nil)
	}
}

// TestAnswersOfAnEarlierSearchSayNothing about a way that changed since.
func TestAnswersOfAnEarlierSearchSayNothing(t *testing.T) {
	m := search{}
	m.wanted(1420)
	now := time.Unix(1_000, 0)
	if got := m.ask(now, true, time.Second); len(got) != 1 || got[0] != (trial{1420, false}) {
		t.Fatalf("asks %v", got)
	}
	m.sent(7)
	m.again()
	now = now.Add(time.Second)
	_ = m.ask(now, true, time.Second)
	m.sent(9)
	m.answer(7, trial{1420, false}, now)
	m.answer(10, trial{1420, false}, now)
	m.answer(9, trial{1400, false}, now)
	if m.passed != 0 {
		t.Errorf("%d passed", m.passed)
	}
	m.answer(9, trial{1420, false}, now)
	if m.passed != 1420 {
		t.Errorf("%d passed", m.passed)
	}
}

// TestNothingPasses: then little is asked, and what passes later is found.
func TestNothingPasses(t *testing.T) {
	r := &road{up: true, rtt: 5 * time.Millisecond, size: 600}
	w := newWorld(t)
	w.set.WantMTU(1420)
	w.roads[addr(1)] = r
	w.want()
	w.set.Established(addr(1), w.now)
	w.run(time.Minute, nil)
	before := w.asked[addr(1)]
	w.run(time.Minute, nil)
	if n := w.asked[addr(1)] - before; w.mtu() != 0 || n > 60+4*(1+2*10) {
		t.Errorf("MTU %d, %d questions in a minute", w.mtu(), n)
	}
	r.size = 700
	w.run(sizePause+time.Second, nil)
	if w.mtu() != MinMTU || !w.set.Halved() {
		t.Errorf("MTU %d, halved %v", w.mtu(), w.set.Halved())
	}
}
