package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// event is what go test -json says, one per line.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of a package that is being built
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

// counter follows one run of go test. Tests with subtests count only when they failed by themselves: their subtests are
// what was tested.
type counter struct {
	w       io.Writer
	results map[key]string // pass, fail or skip
	output  map[key][]string
	parent  map[key]bool
	skips   map[string]int // reason -> how many
	builds  map[string][]string
	took    map[key]float64 // seconds, of tests without subtests
}

// slowest is how many tests the end of a stage names with their time.
const slowest = 5

type key struct{ pkg, test string }

func newCounter(w io.Writer) *counter {
	return &counter{
		w: w, results: make(map[key]string), output: make(map[key][]string), parent: make(map[key]bool),
		skips: make(map[string]int), builds: make(map[string][]string), took: make(map[key]float64),
	}
}

// read takes everything; lines that are not JSON (lint, make) pass through.
func (c *counter) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if line[0] != '{' || json.Unmarshal(line, &e) != nil || e.Action == "" {
				_, _ = c.w.Write(line)
			} else {
				c.take(e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (c *counter) take(e event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "output":
		c.output[k] = append(c.output[k], e.Output)
	case "build-output":
		c.builds[e.ImportPath] = append(c.builds[e.ImportPath], e.Output)
	case "run":
		for i, r := range e.Test {
			if r == '/' {
				c.parent[key{e.Package, e.Test[:i]}] = true
			}
		}
	case "pass", "fail", "skip":
		if e.Test == "" {
			c.endPackage(e)
		} else {
			c.endTest(k, e)
		}
	}
}

func (c *counter) endTest(k key, e event) {
	c.results[k] = e.Action
	c.took[k] = e.Elapsed
	switch e.Action {
	case "fail":
		c.show(k, fmt.Sprintf("%s %s", k.pkg, k.test))
	case "skip":
		c.skips[reason(c.output[k])]++
	}
	delete(c.output, k)
}

// reason finds what t.Skip said: the line that begins with a file and a line number.
func reason(output []string) string {
	for _, l := range output {
		l = strings.TrimSpace(l)
		if _, said, ok := strings.Cut(l, ".go:"); ok {
			if _, said, ok = strings.Cut(said, ": "); ok {
				return said
			}
		}
	}
	return "no reason given"
}

func (c *counter) endPackage(e event) {
	k := key{e.Package, ""}
	c.results[k] = e.Action
	switch e.Action {
	case "pass":
		_, _ = fmt.Fprintf(c.w, "ok    %-32s %6.1f s\n", e.Package, e.Elapsed)
	case "skip": // has no tests
		delete(c.results, k)
	case "fail":
		_, _ = fmt.Fprintf(c.w, "FAIL  %-32s %6.1f s\n", e.Package, e.Elapsed)
		_, _ = io.WriteString(c.w, strings.Join(c.builds[cmp.Or(e.FailedBuild, e.Package)], ""))
		if len(c.output[k]) > 0 { // goroutines that were left, or who killed it
			c.show(k, e.Package)
		}
		var died []key // what was still running
		for other := range c.output {
			if _, ended := c.results[other]; other.pkg == e.Package && !ended {
				died = append(died, other)
			}
		}
		slices.SortFunc(died, func(a, b key) int { return cmp.Compare(a.test, b.test) })
		for _, d := range died {
			c.show(d, "unfinished: "+d.pkg+" "+d.test)
		}
	}
	maps.DeleteFunc(c.output, func(other key, _ []string) bool { return other.pkg == e.Package })
}

func (c *counter) show(k key, title string) {
	_, _ = fmt.Fprintf(c.w, "---- %s\n%s", title, strings.Join(c.output[k], ""))
}

// tally counts, and tells why tests were skipped.
func (c *counter) tally(stage string) tally {
	t := tally{Stage: stage}
	failedBelow := make(map[key]bool) // a package or test of which something inside failed
	for k, r := range c.results {
		if r == "fail" && k.test != "" {
			failedBelow[key{k.pkg, ""}] = true
			for i, ch := range k.test {
				if ch == '/' {
					failedBelow[key{k.pkg, k.test[:i]}] = true
				}
			}
		}
	}
	for k, r := range c.results {
		inner := c.parent[k] || k.test == ""
		switch {
		case r == "fail" && !(inner && failedBelow[k]):
			t.Failed++
			t.Names = append(t.Names, strings.TrimSpace(k.pkg+" "+k.test))
		case inner:
		case r == "pass":
			t.Passed++
		case r == "skip":
			t.Skipped++
		}
	}
	slices.Sort(t.Names)
	if named := c.longest(); named != "" {
		_, _ = fmt.Fprintln(c.w, "slowest:", named)
	}
	for _, why := range slices.Sorted(maps.Keys(c.skips)) {
		_, _ = fmt.Fprintf(c.w, "skipped %d: %s\n", c.skips[why], why)
	}
	return t
}

// longest names the tests that took most of the time.
func (c *counter) longest() string {
	tests := slices.DeleteFunc(slices.Collect(maps.Keys(c.took)), func(k key) bool { return c.parent[k] || c.took[k] < 1 })
	slices.SortFunc(tests, func(a, b key) int { return cmp.Or(cmp.Compare(c.took[b], c.took[a]), cmp.Compare(a.test, b.test)) })
	var words []string
	for _, k := range tests[:min(len(tests), slowest)] {
		words = append(words, fmt.Sprintf("%s %.0f s", k.test, c.took[k]))
	}
	return strings.Join(words, ", ")
}
