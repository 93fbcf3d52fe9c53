package ipamsim

import (
	"sync/atomic"
	"time"
	"unsafe"
)

// A machine shows a wall clock, which somebody may set, and measures waits by another one, which nobody can. A time.Time has
// both, but not in a bubble of testing/synctest, whose times have the wall clock alone; and nothing in package time makes a
// Time of two clocks that disagree. So it is put together here, from what time.Time has been since Go 1.9.

// reading is a time.Time as package time keeps it: a flag, seconds since 1885 and nanoseconds; and the other clock.
type reading struct {
	wall uint64
	ext  int64
	loc  *time.Location
}

const (
	hasOther    = 1 << 63
	secondsFrom = 30            // bit; the nanoseconds are below
	from1885    = 2_682_288_000 // seconds, to 1970
)

// clock is one machine's.
type clock struct {
	began time.Time    // of the World
	ahead atomic.Int64 // of the wall clock, in seconds
}

// SetClock sets a machine's wall clock ahead, or back.
func (w *World) SetClock(m *Machine, by time.Duration) {
	w.logf("the clock of %s is set by %s", m, by)
	m.clock.ahead.Add(int64(by / time.Second))
}

// now is what time.Now says on that machine.
func (c *clock) now() time.Time {
	t := time.Now()
	r := reading{
		wall: hasOther | uint64(t.Unix()+c.ahead.Load()+from1885)<<secondsFrom | uint64(t.Nanosecond()),
		ext:  1 + int64(t.Sub(c.began)), loc: time.Local,
	}
	return *(*time.Time)(unsafe.Pointer(&r))
}
