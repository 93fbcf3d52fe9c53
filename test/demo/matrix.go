package main

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

// matrix holds who reached whom, and how.
type matrix struct {
	ends []end

	mu    sync.Mutex
	tried map[pair]map[string]bool // what was tried, and whether it worked
}

type pair struct{ from, to string }

func newMatrix(ends []end) *matrix { return &matrix{ends: ends, tried: make(map[pair]map[string]bool)} }

func (m *matrix) set(from, to, what string, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := pair{from, to}
	if m.tried[p] == nil {
		m.tried[p] = make(map[string]bool)
	}
	m.tried[p][what] = ok
}

// summary counts the attempts that worked.
func (m *matrix) summary() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	good, all := 0, 0
	for _, tries := range m.tried {
		for _, ok := range tries {
			all++
			if ok {
				good++
			}
		}
	}
	return fmt.Sprintf("%d of %d", good, all)
}

// cell is ✓ and the number of ways that worked, or the ways that did not.
func (m *matrix) cell(from, to string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	tries := m.tried[pair{from, to}]
	var bad []string
	for what, ok := range tries {
		if !ok {
			bad = append(bad, what)
		}
	}
	switch {
	case from == to:
		return "·"
	case len(tries) == 0:
		return "?"
	case len(bad) > 0:
		slices.Sort(bad)
		return "✗ " + strings.Join(bad, ",")
	}
	return fmt.Sprintf("✓%d", len(tries))
}

func (m *matrix) print(s *screen) {
	t := &table{}
	head := []string{"from \\ to"}
	for _, e := range m.ends {
		head = append(head, e.label())
	}
	t.add(head...)
	for _, from := range m.ends {
		row := []string{from.label()}
		for _, to := range m.ends {
			row = append(row, m.cell(from.name, to.name))
		}
		t.add(row...)
	}
	t.print(s)
	s.line("    ✓n: n ways work, of ping and page over IPv4 and IPv6 (hosts serve no page)")
}

func (e end) label() string {
	if e.pod {
		return e.name
	}
	return "host " + e.name
}
