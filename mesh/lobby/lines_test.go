package lobby

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestAFloodOfCallersWritesLittle(t *testing.T) {
	var out bytes.Buffer
	level := new(slog.LevelVar)
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level}))
	var l Lines
	now := time.Unix(0, 0)
	knock := func(times int) (lines int) {
		out.Reset()
		for range times {
			l.Logger(log, now).Info("refuse")
		}
		return strings.Count(out.String(), "\n")
	}
	if n := knock(5); n != 5 {
		t.Errorf("%d lines of the first 5", n)
	}
	if n := knock(1000); n != linesAtOnce-5 {
		t.Errorf("%d lines of a flood", n)
	}
	now = now.Add(lineEach)
	if n := knock(1000); n != 1 || !strings.Contains(out.String(), "skipped=985") {
		t.Errorf("%d lines later: %s", n, out.String())
	}
	now = now.Add(lineEach)
	if n := knock(1); n != 1 || !strings.Contains(out.String(), "skipped=999") {
		t.Errorf("%d lines: %s", n, out.String())
	}
	now = now.Add(time.Hour)
	if n := knock(1000); n != linesAtOnce || strings.Contains(out.String(), "skipped") {
		t.Errorf("%d lines after an hour: %s", n, out.String())
	}
	level.Set(slog.LevelDebug)
	if n := knock(100); n != 100 {
		t.Errorf("%d lines at level debug", n)
	}
}
