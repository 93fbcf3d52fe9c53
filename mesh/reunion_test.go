package mesh

import (
	"testing"
	"testing/synctest"
	"time"
)

// turns plays a reunion for a while and counts its exchanges.
func (r *reunion) turns(t *testing.T, d time.Duration, members int, state func(exchanges int) (alive, back int)) (exchanges int) {
	t.Helper()
	for end := time.After(d); ; {
		select {
		case <-end:
			return exchanges
		case <-r.timer.C:
			alive, back := state(exchanges)
			if r.turn(alive, members-alive, back, false) {
				exchanges++
			}
		}
	}
}

func TestReunionGoesOnWhileItHelps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReunion()
		defer r.timer.Stop()
		r.wake()
		r.wake() // no sooner, no oftener
		got := r.turns(t, time.Minute, 100, func(n int) (alive, back int) { return min(50+5*n, 100), max(0, 50-5*n) })
		if want := 10 + reunionWhole; got < want || got > want+1 {
			t.Errorf("%d exchanges, of which ten brought five members each of the fifty that lacked", got)
		}
		if r.armed || r.began {
			t.Error("it is not over")
		}
	})
}

func TestReunionWithNobodyToHearOf(t *testing.T) {
	for _, c := range []struct {
		what       string
		back       int // of three that are missing
		least, max int
	}{
		{"one is heard and cannot be reached", 1, reunionVain, 30},
		{"one was heard once", 0, 0, 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newReunion()
				defer r.timer.Stop()
				r.wake()
				got := r.turns(t, 10*time.Minute, 100, func(int) (int, int) { return 97, c.back })
				if got < c.least || got > c.max {
					t.Errorf("%d exchanges in ten minutes, want %d to %d", got, c.least, c.max)
				}
			})
		})
	}
}

// The others are gone in the midst of a reunion: it ends by itself.
func TestReunionIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReunion()
		defer r.timer.Stop()
		r.wake()
		got := r.turns(t, time.Hour, 100, func(n int) (alive, back int) {
			if n == 0 {
				return 50, 3
			}
			return 60, 0
		})
		if got == 0 || got > 1+1+reunionVain || r.armed {
			t.Errorf("%d exchanges, and there will be more: %v", got, r.armed)
		}
	})
}

// In a large cluster, where one exchange brings much, they are further apart.
func TestReunionSparesTheLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReunion()
		defer r.timer.Stop()
		r.wake()
		got := r.turns(t, 5*time.Minute, 10_000, func(n int) (alive, back int) { return 5000 + n, 100 })
		if got < 10 || got > 20 {
			t.Errorf("%d exchanges of ten thousand states in five minutes", got)
		}
	})
}
