package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// screen is what the person sees: one line per step, rewritten when the step is done if it is a terminal.
type screen struct {
	out io.Writer
	tty bool
}

func (s *screen) line(format string, args ...any) { _, _ = fmt.Fprintf(s.out, format+"\n", args...) }

func (s *screen) title(text string) { s.line("\n%s", s.bold(text)) }

// step runs f and shows how long it took. What f returns in words is put behind the name.
func (s *screen) step(name string, f func() (detail string, err error)) error {
	if s.tty {
		_, _ = fmt.Fprintf(s.out, "  … %s", name)
	}
	start := time.Now()
	detail, err := f()
	mark, took := s.colour("32", "✓"), fmt.Sprintf("%.1f s", time.Since(start).Seconds())
	if err != nil {
		mark = s.colour("31", "✗")
	}
	if s.tty {
		_, _ = fmt.Fprint(s.out, "\r\x1b[K")
	}
	if detail != "" {
		name += ": " + detail
	}
	const width = 90
	dots := max(2, width-utf8.RuneCountInString(name)-len(took))
	s.line("  %s %s %s %s", mark, name, s.colour("2", strings.Repeat("·", dots)), took)
	return err
}

func (s *screen) bold(text string) string { return s.colour("1", text) }

func (s *screen) colour(code, text string) string {
	if !s.tty {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// table is cells in columns that line up.
type table struct{ rows [][]string }

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) print(s *screen) {
	var widths []int
	for _, row := range t.rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range t.rows {
		var b strings.Builder
		for i, cell := range row {
			b.WriteString(cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
		}
		s.line("    %s", strings.TrimRight(b.String(), " "))
	}
}
