package main

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"

	"weft/prog/control"
)

// printJSON writes a document as scripts get it.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return nil
}

// screen asks what stdout is. NO_COLOR, when it is set to anything, means what it says (no-color.org).
func (a *app) screen() screen {
	columns, isTTY := a.terminal()
	if !isTTY {
		return screen{}
	}
	no, _ := a.lookup("NO_COLOR")
	term, _ := a.lookup("TERM")
	return screen{columns: columns, colour: no == "" && term != "dumb"}
}

// printTable writes a table, or words when there is nothing in it.
func (a *app) printTable(t *table, empty string) {
	if len(t.rows) == 0 {
		a.say("%s", empty)
		return
	}
	a.printLines(t.lines(a.screen(), 0))
}

func (a *app) printLines(lines []string) {
	for _, l := range lines {
		fmt.Fprintln(a.stdout, l)
	}
}

// stateCell colours the state of a node, a peer, the address space or a check.
func stateCell(state string) cell {
	switch state {
	case control.NodeReady, control.PeerAlive, control.CheckOK:
		return cell{state, good}
	case control.PeerDead, control.PeerRemoved, control.CheckFailed:
		return cell{state, bad}
	}
	return cell{state, warn}
}

// short is the part of an ID that people compare by eye.
func short(id string) string { return id[:min(8, len(id))] }

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// showMS shows milliseconds with three digits that mean something.
func showMS(ms float64) string {
	switch {
	case ms <= 0:
		return ""
	case ms < 1:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// showPercent never rounds some loss to none.
func showPercent(share float64) string {
	p := share * 100
	switch {
	case p > 0 && p < 1:
		return "<1%"
	case p > 99 && p < 100:
		return ">99%"
	}
	return fmt.Sprintf("%.0f%%", p)
}

func showBytes(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), -1
	for value >= 1024 && unit < 5 {
		value, unit = value/1024, unit+1
	}
	if value < 10 {
		return fmt.Sprintf("%.1f %ciB", value, "KMGTPE"[unit])
	}
	return fmt.Sprintf("%.0f %ciB", value, "KMGTPE"[unit])
}

// showAge shows seconds with the two units that matter.
func showAge(seconds float64) string {
	s := int64(math.Round(seconds))
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	}
	return fmt.Sprintf("%dd%02dh", s/86400, s/3600%24)
}

// words joins values of any kind with commas.
func words[T fmt.Stringer](values []T) string {
	var all []string
	for _, v := range values {
		all = append(all, v.String())
	}
	return strings.Join(all, ", ")
}
