package weftd

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
)

// maxLogLines is how many lines a report shows; maxLogLine how long each may be, bytes.
const (
	maxLogLines = 200
	maxLogLine  = 2 << 10
)

// logLines passes records on and keeps the last ones as text, for `weft report`.
type logLines struct {
	next slog.Handler
	text slog.Handler
	*lineRing
}

type lineRing struct {
	mu    sync.Mutex
	lines []string
}

func newLogLines(next slog.Handler) *logLines {
	r := &lineRing{}
	return &logLines{next: next, text: slog.NewTextHandler(r, nil), lineRing: r}
}

// Write takes one line of the text handler.
func (r *lineRing) Write(b []byte) (int, error) {
	line := string(bytes.TrimRight(b[:min(len(b), maxLogLine)], "\n"))
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.lines) == maxLogLines {
		copy(r.lines, r.lines[1:])
		r.lines = r.lines[:maxLogLines-1]
	}
	r.lines = append(r.lines, line)
	return len(b), nil
}

// last is what was kept, oldest first.
func (r *lineRing) last() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.lines...)
}

func (l *logLines) Enabled(ctx context.Context, level slog.Level) bool {
	return l.next.Enabled(ctx, level)
}

func (l *logLines) Handle(ctx context.Context, r slog.Record) error {
	_ = l.text.Handle(ctx, r) // writes to memory
	return l.next.Handle(ctx, r)
}

func (l *logLines) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logLines{next: l.next.WithAttrs(attrs), text: l.text.WithAttrs(attrs), lineRing: l.lineRing}
}

func (l *logLines) WithGroup(name string) slog.Handler {
	return &logLines{next: l.next.WithGroup(name), text: l.text.WithGroup(name), lineRing: l.lineRing}
}
