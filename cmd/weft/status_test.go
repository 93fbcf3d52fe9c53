package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"weft/prog/control"
	"weft/prog/control/controltest"
)

// golden compares text with testdata/golden/NAME; UPDATE=1 in the environment writes it instead.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	if os.Getenv("UPDATE") != "" {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func TestStatusOnScreensOfAllSizes(t *testing.T) {
	statuses := map[string]control.Status{"waiting": waiting(), "alone": alone(), "three": threeStatus(), "unconfirmed": unconfirmed()}
	for name, st := range statuses {
		for _, columns := range []int{50, 72, 100, 160} {
			t.Run(fmt.Sprintf("%s on %d columns", name, columns), func(t *testing.T) {
				lines := statusLines(st, screen{columns: columns})
				for _, l := range lines {
					// A fact is one value and may be longer; tables and sentences must fit.
					if utf8.RuneCountInString(l) > columns && !strings.HasPrefix(l, "  ") && !strings.HasPrefix(l, "Cluster") && !strings.HasPrefix(l, "Peers") && !strings.HasPrefix(l, "Addresses") {
						t.Errorf("too wide: %q", l)
					}
				}
				if columns == 72 {
					golden(t, "status-"+name+"-72.txt", strings.Join(lines, "\n")+"\n")
				}
			})
		}
	}
	t.Run("three in colour on 160 columns", func(t *testing.T) {
		lines := statusLines(threeStatus(), screen{columns: 160, colour: true})
		golden(t, "status-three-colour.txt", strings.Join(lines, "\n")+"\n")
		plain := statusLines(threeStatus(), screen{columns: 160})
		for i, l := range lines {
			for _, code := range []string{"0", "1", "2", "31", "32", "33"} {
				l = strings.ReplaceAll(l, "\x1b["+code+"m", "")
			}
			if i >= len(plain) || l != plain[i] {
				t.Errorf("colour moves the text: %q", l)
			}
		}
	})
	t.Run("three on 40 columns", func(t *testing.T) {
		golden(t, "status-three-40.txt", strings.Join(statusLines(threeStatus(), screen{columns: 40}), "\n")+"\n")
	})
}

func TestColourOnlyWhereItIsWanted(t *testing.T) {
	for name, c := range map[string]struct {
		tty  bool
		env  map[string]string
		want bool
	}{
		"a terminal":            {true, nil, true},
		"a pipe":                {false, nil, false},
		"NO_COLOR":              {true, map[string]string{"NO_COLOR": "1"}, false},
		"an empty NO_COLOR":     {true, map[string]string{"NO_COLOR": ""}, true},
		"a terminal that can't": {true, map[string]string{"TERM": "dumb"}, false},
	} {
		a := &app{
			terminal: func() (int, bool) { return 80, c.tty },
			lookup:   func(k string) (string, bool) { v, ok := c.env[k]; return v, ok },
		}
		if got := a.screen().colour; got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// pictures counts draws and ends the watch after some.
type pictures struct {
	strings.Builder
	left int
	done func()
}

func (p *pictures) Write(b []byte) (int, error) {
	if p.left--; p.left == 0 {
		p.done()
	}
	return p.Builder.Write(b)
}

func TestWatchDrawsOverItself(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &pictures{left: 2, done: cancel}
	a := &app{
		stdout: out, stderr: out, lookup: func(string) (string, bool) { return "", false },
		terminal: func() (int, bool) { return 80, true },
	}
	path := controltest.Start(t, controltest.New(alone()))
	if code := a.run(ctx, []string{"weft", "status", "--watch", "--socket", path}); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	text := out.String()
	if !strings.HasPrefix(text, "\x1b[2J\x1b[H") || strings.Count(text, "\x1b[H") != 2 || strings.Count(text, "alpha") != 2 {
		t.Errorf("got %q", text)
	}
}

func TestFigures(t *testing.T) {
	for got, want := range map[string]string{
		showMS(0): "", showMS(0.05): "0.05 ms", showMS(99.94): "99.9 ms", showMS(250): "250 ms",
		showPercent(0): "0%", showPercent(0.001): "<1%", showPercent(0.999): ">99%", showPercent(1): "100%",
		showBytes(0): "0 B", showBytes(1023): "1023 B", showBytes(1024): "1.0 KiB", showBytes(10 << 20): "10 MiB",
		showBytes(1<<64 - 1): "16 EiB",
		showAge(59):          "59s", showAge(61): "1m01s", showAge(3600): "1h00m", showAge(90000): "1d01h",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
