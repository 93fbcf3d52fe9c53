package lobby

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Limits of what is written.
const (
	linesAtOnce = 20
	lineEach    = 10 * time.Second // in the long run: less than a megabyte a day
)

// Lines bounds what is logged about callers: whoever may knock as often as he likes must not fill a disk by it, or push
// all else out of what is kept. The zero value has written nothing yet. It may be used from any goroutine.
type Lines struct {
	mu      sync.Mutex // guards what follows
	paid    time.Time  // until when the lines written are paid for; no longer than linesAtOnce ahead
	skipped int        // since the last one
}

// Logger is log for one line, or a silent one when there were too many. The first that is written after that says how many
// were not. Who looks for faults, at level debug, sees all.
func (l *Lines) Logger(log *slog.Logger, now time.Time) *slog.Logger {
	if log.Enabled(context.Background(), slog.LevelDebug) {
		return log
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	paid := l.paid
	if paid.Before(now) {
		paid = now
	}
	if paid = paid.Add(lineEach); paid.Sub(now) > linesAtOnce*lineEach {
		l.skipped++
		return slog.New(slog.DiscardHandler)
	}
	l.paid = paid
	if l.skipped > 0 {
		log = log.With("skipped", l.skipped)
		l.skipped = 0
	}
	return log
}
