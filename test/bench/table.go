package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
)

// table is the outcome of a duel.
type table struct {
	duel
	options
	cells map[string]map[string]cell // by column and quantity
}

// cell is one quantity in one column.
type cell struct{ of, against, ratio estimate }

func newTable(d duel, o options) *table {
	return &table{duel: d, options: o, cells: map[string]map[string]cell{}}
}

// fill takes the rounds of a column in. A ratio is that of one pair; their median is not the ratio of the medians.
func (t *table) fill(column string, rounds []round) {
	t.cells[column] = map[string]cell{}
	for _, q := range t.options.quantities {
		var of, against, ratio []float64
		for _, r := range rounds {
			x, okX := r.of[q.name]
			y, okY := r.against[q.name]
			if okX {
				of = append(of, x)
			}
			if okY {
				against = append(against, y)
			}
			if okX && okY && y > 0 {
				ratio = append(ratio, x/y)
			}
		}
		if len(ratio) > 0 && t.shows(q.name) {
			t.cells[column][q.name] = cell{estimateOf(of), estimateOf(against), estimateOf(ratio)}
		}
	}
}

// verdict holds a ratio against its bar.
func (t *table) verdict(q quantity, column string, ratio estimate) string {
	bar := q.bars[column]
	if t.bars != nil {
		bar = t.bars[q.name]
	}
	if t.reference || bar == 0 || ratio.n == 0 {
		return ""
	}
	return ratio.against(bar, q.less)
}

// against says whether a bar is met, by the median; "open" is one that the median misses and the interval reaches, so that more
// pairs, or a quieter machine, would have to tell.
func (e estimate) against(bar float64, less bool) string {
	sign, met, near := "≥", e.median >= bar, e.high >= bar
	if less {
		sign, met, near = "≤", e.median <= bar, e.low <= bar
	}
	word := "MISSED"
	switch {
	case met:
		word = "met"
	case near:
		word = "open"
	}
	return fmt.Sprintf("%s%g %s", sign, bar, word)
}

func (t *table) print(out io.Writer) {
	fmt.Fprintf(out, "\n%v: median of %d ratios [%.0f %% interval]; segmentation on the cable off (as a network card) and on\n\n",
		t.duel, t.pairs, 100*level(t.pairs))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "\t")
	shown := slices.DeleteFunc(columns(), func(c string) bool { return t.cells[c] == nil })
	for _, c := range shown {
		fmt.Fprintf(w, "\t%s\t\tratio\tbar", c)
	}
	fmt.Fprintln(w)
	for _, q := range t.options.quantities {
		has := func(cells map[string]cell) bool { _, ok := cells[q.name]; return ok }
		if !slices.ContainsFunc(slices.Collect(maps.Values(t.cells)), has) {
			continue
		}
		fmt.Fprintf(w, "%s\t%s", q.name, q.unit)
		for _, c := range shown {
			v := t.cells[c][q.name]
			fmt.Fprintf(w, "\t%s\t/ %s\t%v\t%s", figure(v.of), figure(v.against), v.ratio, t.verdict(q, c, v.ratio))
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush()
}

// figure is a median in three digits.
func figure(e estimate) string {
	switch {
	case e.n == 0:
		return "-"
	case e.median >= 100:
		return fmt.Sprintf("%.0f", e.median)
	case e.median >= 10:
		return fmt.Sprintf("%.1f", e.median)
	}
	return fmt.Sprintf("%.2f", e.median)
}
