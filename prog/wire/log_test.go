package wire

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestRepeatedLinesAreWithheldAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		log := slog.New(newLimiter(slog.NewTextHandler(&b, nil))).With("peer", "n1")
		for range 3 * logBurst {
			log.Info("again")
		}
		log.Info("something else")
		if got := strings.Count(b.String(), "msg=again"); got != logBurst {
			t.Errorf("%d lines passed, want %d", got, logBurst)
		}
		if !strings.Contains(b.String(), "something else") {
			t.Error("another message was withheld")
		}
		time.Sleep(logPeriod) // the bubble's clock
		log.Info("again")
		if want := fmt.Sprintf("withheld=%d", 2*logBurst); !strings.Contains(b.String(), want) {
			t.Errorf("no %s in\n%s", want, b.String())
		}
	})
}

func TestTheTableOfMessagesIsBounded(t *testing.T) {
	l := newLimiter(slog.DiscardHandler)
	for i := range 10 * logMessages {
		l.table.allow(limitKey{message: fmt.Sprint(i)}, time.Unix(0, 0))
	}
	if n := len(l.table.byKey); n > logMessages {
		t.Errorf("%d messages are kept", n)
	}
}

func TestTheLogFileKeepsItsLastLinesWhenCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "wire.log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := newLogFile(f)
	line := strings.Repeat("x", 1000)
	for i := range 3 * logBytes / 1000 {
		if _, err := fmt.Fprintf(l, "%d %s\n", i, line); err != nil {
			t.Fatal(err)
		}
		if st, _ := f.Stat(); st.Size() > logBytes || st.Size() != l.size {
			t.Fatalf("the file has %d bytes, thought %d", st.Size(), l.size)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	var last int
	if _, err := fmt.Sscan(lines[len(lines)-1], &last); err != nil || last != 3*logBytes/1000-1 {
		t.Errorf("last line is %d, %v", last, err)
	}
	for i, line := range lines {
		var n int
		if _, err := fmt.Sscan(line, &n); err != nil || n != last-len(lines)+1+i {
			t.Fatalf("line %d of %d is %.20q", i, len(lines), line)
		}
	}
}
