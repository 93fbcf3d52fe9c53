package wire

import (
	"context"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Limits of the log: the wire may run unattended for months and must not fill a disk.
const (
	logBurst    = 10               // lines of one message in a period
	logPeriod   = 10 * time.Second // then they are only counted
	logMessages = 256              // that are told apart
	logBytes    = 4 << 20          // a log file that grows beyond is cut to its last quarter
)

// limiter is a slog.Handler that passes a burst of each message in a period and counts the rest, which the next line
// of that message reports.
type limiter struct {
	next  slog.Handler
	table *limits
}

type limits struct {
	mu    sync.Mutex
	byKey map[limitKey]*limit
}

type limitKey struct {
	level   slog.Level
	message string
}

type limit struct {
	since            time.Time
	passed, withheld int
}

func newLimiter(next slog.Handler) *limiter {
	return &limiter{next: next, table: &limits{byKey: map[limitKey]*limit{}}}
}

func (h *limiter) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

func (h *limiter) Handle(ctx context.Context, r slog.Record) error {
	withheld, ok := h.table.allow(limitKey{r.Level, r.Message}, r.Time)
	if !ok {
		return nil
	}
	if withheld > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("withheld", withheld))
	}
	return h.next.Handle(ctx, r)
}

func (h *limiter) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &limiter{h.next.WithAttrs(attrs), h.table}
}

func (h *limiter) WithGroup(name string) slog.Handler {
	return &limiter{h.next.WithGroup(name), h.table}
}

// allow decides about one line and tells how many of the same message were withheld before it.
func (t *limits) allow(key limitKey, now time.Time) (withheld int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.byKey[key]
	if l == nil {
		if len(t.byKey) >= logMessages {
			clear(t.byKey)
		}
		l = &limit{since: now}
		t.byKey[key] = l
	}
	if now.Sub(l.since) >= logPeriod || now.Before(l.since) {
		withheld = l.withheld
		*l = limit{since: now}
	}
	if l.passed >= logBurst {
		l.withheld++
		return 0, false
	}
	l.passed++
	return withheld, true
}

// logFile keeps a file that was opened for reading and appending below logBytes. Anything else is written as it is.
type logFile struct {
	f    *os.File
	size int64 // as we know it; negative when f is not a regular file
}

func newLogFile(f *os.File) *logFile {
	if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
		return &logFile{f, st.Size()}
	}
	return &logFile{f, -1}
}

func (l *logFile) Write(b []byte) (int, error) {
	if l.size >= 0 && l.size+int64(len(b)) > logBytes {
		l.cut()
	}
	n, err := l.f.Write(b)
	if l.size >= 0 {
		l.size += int64(n)
	}
	return n, err
}

// cut keeps the last quarter of the file, from the start of a line on; nothing when it cannot be read.
func (l *logFile) cut() {
	tail := make([]byte, logBytes/4)
	n, err := l.f.ReadAt(tail, max(0, l.size-int64(len(tail))))
	if err != nil && err != io.EOF {
		n = 0
	}
	tail = tail[:n]
	for i, c := range tail {
		if c == '\n' {
			tail = tail[i+1:]
			break
		}
	}
	if l.f.Truncate(0) != nil {
		l.size = -1 // not ours to cut
		return
	}
	n, _ = l.f.Write(tail)
	l.size = int64(n)
}
