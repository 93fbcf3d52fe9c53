// Package lobby bounds the callers that have not said yet who they are: so many in all, so many from one place, and when
// there is no room, whoever has waited longest leaves, unless all have only just come. An honest caller is through in the
// time of a few round trips; one who only takes up room, from however many places, makes room for it. What a place is, and
// how a caller is sent away, is the user's. It also bounds what is logged about callers.
package lobby

import (
	"slices"
	"sync"
	"time"
)

// Limits are what a Lobby holds callers to.
type Limits struct {
	All      int           // at once
	Each     int           // of them, from one place
	Patience time.Duration // nobody is sent away sooner
}

// Lobby is where callers wait. It may be used from any goroutine.
type Lobby[P comparable] struct {
	limits Limits

	mu      sync.Mutex // guards what follows
	waiting []*Caller[P]
	each    map[P]int
}

// Caller is one who waits.
type Caller[P comparable] struct {
	place P
	since time.Time
	leave func()
}

// New makes an empty one.
func New[P comparable](l Limits) *Lobby[P] { return &Lobby[P]{limits: l, each: map[P]int{}} }

// Enter lets a caller in, or returns nil. The zero place is nobody's, of which there may be as many as there is room for.
// sendAway is called, at most once, when the caller must make room for another; it must not wait.
func (l *Lobby[P]) Enter(from P, now time.Time, sendAway func()) *Caller[P] {
	l.mu.Lock()
	var nowhere P
	if from != nowhere && l.each[from] >= l.limits.Each {
		l.mu.Unlock()
		return nil
	}
	var gone *Caller[P]
	if len(l.waiting) >= l.limits.All {
		if gone = l.waiting[0]; now.Sub(gone.since) < l.limits.Patience {
			l.mu.Unlock()
			return nil
		}
		l.remove(0)
	}
	c := &Caller[P]{from, now, sendAway}
	l.waiting = append(l.waiting, c)
	l.each[from]++
	l.mu.Unlock()
	if gone != nil {
		gone.leave()
	}
	return c
}

// Leave gives the caller's room back; again, or after it was sent away, does nothing.
func (l *Lobby[P]) Leave(c *Caller[P]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.waiting, c); i >= 0 {
		l.remove(i)
	}
}

func (l *Lobby[P]) remove(i int) {
	from := l.waiting[i].place
	l.waiting = slices.Delete(l.waiting, i, i+1)
	if l.each[from]--; l.each[from] == 0 {
		delete(l.each, from)
	}
}
