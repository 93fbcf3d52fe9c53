package path

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A relay holds answers back, lets them overtake each other and says them again, in any measure. The pair leaves it for an honest one
// though that is slow, and what it repeats of its better days keeps nobody with it once it carries nothing.
func TestALyingRelayIsLeft(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(rt)
		hold := time.Duration(rapid.IntRange(600, 2500).Draw(rt, "held back for up to, ms")) * time.Millisecond
		draw := rapid.Uint32Range(0, 1<<16-1)
		chance := func(what string) float64 { return float64(draw.Draw(rt, what)) / (1 << 16) }
		w.random = func() float64 { return 1 }
		liar := &road{up: true, rtt: 2 * time.Millisecond, late: func() time.Duration { return hold/2 + time.Duration(chance("late")*float64(hold/2)) }}
		w.roads[Through(relay1)] = liar
		w.roads[Through(relay2)] = &road{up: true, rtt: 80 * time.Millisecond}
		w.want()
		w.set.Established(Through(relay1), w.now)

		heard := map[uint32]int{} // what the liar has answered, with sizes
		const most = 400
		run := func(d time.Duration) {
			for range d / (50 * time.Millisecond) {
				for _, a := range w.air {
					if a.path == Through(relay1) && len(heard) < most {
						heard[a.ask.Number] = a.ask.Size
					}
				}
				w.run(50*time.Millisecond, nil)
				for number, size := range heard { // in no order
					w.set.Answer(number, size, w.now)
				}
			}
		}
		run(20 * time.Second)
		if w.set.Active() != Through(relay2) {
			rt.Fatalf("it is still with the liar: %+v", w.set.Report(w.now))
		}

		// It is the only one for a while, and then carries nothing more.
		w.roads[Through(relay2)].up = false
		run(time.Minute)
		liar.up, w.roads[Through(relay2)].up = false, true
		run(time.Minute)
		if w.set.Active() != Through(relay2) || w.set.Silence(w.now) > DeadAfter {
			rt.Fatalf("a relay that carries nothing and repeats itself is believed: silent for %v, %+v", w.set.Silence(w.now), w.set.Report(w.now))
		}
	})
}
