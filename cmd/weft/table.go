package main

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// style is what a cell means; a terminal shows it as a colour.
type style uint8

const (
	plain style = iota
	good
	warn
	bad
	dim
	bold
)

// paint wraps text in the colour of its style (ECMA-48).
func paint(s string, st style) string {
	if st == plain || s == "" {
		return s
	}
	code := map[style]string{good: "32", warn: "33", bad: "31", dim: "2", bold: "1"}[st]
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// screen is what the result is shown on. The zero value is a file or a pipe: as wide as need be, and plain.
type screen struct {
	columns int // 0: no limit
	colour  bool
}

func (s screen) paint(text string, st style) string {
	if !s.colour {
		return text
	}
	return paint(text, st)
}

// cell is one field of a table.
type cell struct {
	text  string
	style style
}

func plainCell(s string) cell { return cell{text: s} }

// table is columns of text under a head. When it is too wide for the screen the columns named in drop go, first ones
// first. Where that would cost too many of them the last column, which is prose, moves to a line of its own under each
// row.
type table struct {
	head []string
	drop []string
	rows [][]cell
}

func (t *table) add(cells ...cell) { t.rows = append(t.rows, cells) }

const (
	gap     = 2  // columns between fields
	minLast = 24 // characters without which prose is not worth a column
	hang    = 4  // indent of a last column that did not fit
)

// lines renders the table, each line indented.
func (t *table) lines(s screen, indent int) []string {
	keep, widths := t.layout(s, indent)
	if len(keep) == 0 {
		return nil
	}
	last := len(t.head) - 1
	under := keep[len(keep)-1] != last // the last column did not fit
	pad := strings.Repeat(" ", indent)
	var out []string
	row := func(cells []cell) {
		var b strings.Builder
		b.WriteString(pad)
		for i, col := range keep {
			c := cells[col]
			if c.text == "" {
				c.text = "-"
			}
			if col == last && i == len(keep)-1 {
				wrapped := wrap(c.text, s.columns-indent-sum(widths, keep[:i]))
				b.WriteString(s.paint(wrapped[0], c.style))
				out = append(out, strings.TrimRight(b.String(), " "))
				margin := strings.Repeat(" ", indent+sum(widths, keep[:i]))
				for _, w := range wrapped[1:] {
					out = append(out, margin+s.paint(w, c.style))
				}
				return
			}
			b.WriteString(s.paint(c.text, c.style))
			b.WriteString(strings.Repeat(" ", widths[col]-utf8.RuneCountInString(c.text)))
		}
		out = append(out, strings.TrimRight(b.String(), " "))
		if text := cells[last].text; under && text != "" {
			for _, w := range wrap(text, s.columns-indent-hang) {
				out = append(out, pad+strings.Repeat(" ", hang)+s.paint(w, cells[last].style))
			}
		}
	}
	head := make([]cell, len(t.head))
	for i, h := range t.head {
		if !under || i != last {
			head[i] = cell{h, dim}
		}
	}
	row(head)
	for _, r := range t.rows {
		row(r)
	}
	return out
}

// layout decides which columns are shown and how wide each is, gap included.
func (t *table) layout(s screen, indent int) (keep, widths []int) {
	widths = make([]int, len(t.head))
	for i, h := range t.head {
		widths[i] = utf8.RuneCountInString(h)
		for _, r := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(r[i].text))
		}
		widths[i] += gap
		keep = append(keep, i)
	}
	if s.columns <= 0 || len(keep) == 0 {
		return keep, widths
	}
	last := len(t.head) - 1
	fits := func(cols []int, lastWidth int) bool {
		w := indent
		for _, c := range cols {
			if c == last {
				w += min(widths[c]-gap, lastWidth)
			} else {
				w += widths[c]
			}
		}
		return w <= s.columns
	}
	narrow := func(cols []int) ([]int, bool) {
		for i := 0; !fits(cols, minLast) && i < len(t.drop); i++ {
			cols = slices.DeleteFunc(slices.Clone(cols), func(c int) bool { return t.head[c] == t.drop[i] })
		}
		return cols, fits(cols, minLast)
	}
	beside, ok := narrow(keep)
	if ok && len(keep)-len(beside) < 2 || len(t.drop) == 0 { // without drop, let the terminal wrap it
		return beside, widths
	}
	if under, _ := narrow(keep[:last]); !ok || len(under) > len(beside) {
		return under, widths
	}
	return beside, widths
}

func sum(widths, cols []int) int {
	n := 0
	for _, c := range cols {
		n += widths[c]
	}
	return n
}

// wrap breaks text between words so that no line is longer than width, unless a word is. Without room it does not.
func wrap(text string, width int) []string {
	if width <= 0 || utf8.RuneCountInString(text) <= width {
		return []string{text}
	}
	var out []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			out = append(out, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(out, line)
}
