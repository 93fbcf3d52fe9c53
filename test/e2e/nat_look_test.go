package e2e

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
	"weft/test/netlab"
)

// Two machines behind hard NATs and one public: ping names the route of each reply, doctor lists what both ends tried and
// says what would help, and graph draws it the same from every machine.
func TestPeopleSeeTheWay(t *testing.T) {
	t.Parallel() // it mostly waits
	s := &story{T: t, lab: netlab.New(t)}
	world := netlab.NewInternet(s.lab)
	hub := cluster.On(world.Home("hub", netlab.Public).Host, programs)
	a := cluster.On(world.Home("a", netlab.BehindHard).Host, programs)
	b := cluster.On(world.Home("b", netlab.BehindHard).Host, programs)
	s.machines = []*cluster.Machine{hub, a, b}
	token, err := hub.Found(s.within(startPatience), "--transport", "sleeve")
	s.must(err)
	for _, m := range []*cluster.Machine{a, b} {
		s.must(m.Up("--join", token, "--transport", "sleeve"))
	}
	s.whole()

	s.must(cluster.Poll(s.within(startPatience), func() error {
		out, err := a.CLI("ping", "b", "-c", "1")
		if err != nil || !strings.Contains(out, "relayed via hub") {
			return fmt.Errorf("ping says %q, %w", out, err)
		}
		return nil
	}))
	s.must(cluster.Poll(s.within(patience), func() error {
		out, err := a.CLI("ping", "hub", "-c", "1")
		if err != nil || !strings.Contains(out, "direct "+hub.AddrPort4(6783).String()) {
			return fmt.Errorf("ping of the public machine says %q, %w", out, err)
		}
		return nil
	}))

	var doc control.Doctor
	used := map[string]bool{} // the relay, by whom
	s.must(cluster.Poll(s.within(startPatience), func() error {
		r := a.Type("doctor", "b")
		doc = control.Doctor{} // decoding leaves in a list what it held before
		if err := a.JSON(&doc, "doctor", "b"); err != nil {
			return fmt.Errorf("%w\n%s", err, r.Stdout)
		}
		by := map[string]int{}
		for _, p := range doc.Tried {
			by[p.By]++
			if p.Active {
				used[p.By] = strings.Join(p.Via, ",") == "hub"
			}
		}
		if by["a"] < 2 || by["b"] < 2 || !strings.Contains(doc.Advice, "Both are behind a hard NAT") || !strings.Contains(r.Stdout, doc.Advice) {
			return fmt.Errorf("tried by a: %d, by b: %d, advice %q; it prints\n%s%s", by["a"], by["b"], doc.Advice, r.Stdout, r.Stderr)
		}
		if !used["a"] || !used["b"] {
			return fmt.Errorf("not both ends use the relay: %+v", doc.Tried)
		}
		return nil
	}))

	want := map[string]string{"a b": "relayed hub", "a hub": "direct ", "b hub": "direct "}
	for _, m := range s.machines {
		s.must(cluster.Poll(s.within(patience), func() error {
			var g control.Graph
			if err := m.JSON(&g, "graph"); err != nil {
				return err
			}
			return sameEdges(g, want, 2)
		}))
	}
	for format, check := range map[string]func(string) error{
		"svg":  wellFormed,
		"html": func(s string) error { return holds(s, "<!doctype html>", `"state":"relayed"`) },
		"dot":  func(s string) error { return holds(s, "graph weft {", "via hub") },
	} {
		out, err := hub.CLI("graph", "--format", format)
		s.must(err)
		if err := check(out); err != nil {
			t.Errorf("%s: %v", format, err)
		}
	}

	// Who does not answer is drawn as such, by the word of the others.
	s.must(b.Stop())
	began := time.Now()
	s.must(cluster.Poll(s.within(startPatience), func() error {
		var g control.Graph
		if err := hub.JSON(&g, "graph"); err != nil {
			return err
		}
		silent := ""
		for _, v := range g.Nodes {
			if v.Silent != "" {
				silent += v.Name + " "
			}
		}
		if silent != "b " || len(g.Notes) == 0 {
			return fmt.Errorf("silent: %q, notes %q", silent, g.Notes)
		}
		return nil
	}))
	t.Logf("a graph with a silent member took %.1f s", time.Since(began).Seconds())
}

// sameEdges compares the pairs of a graph, told by so many ends at least.
func sameEdges(g control.Graph, want map[string]string, told int) error {
	names := map[string]string{}
	for _, v := range g.Nodes {
		names[v.ID] = v.Name
	}
	got := map[string]string{}
	for _, e := range g.Edges {
		x, y := names[e.A], names[e.B]
		got[min(x, y)+" "+max(x, y)] = e.State + " " + strings.Join(e.Via, ",")
		if len(e.Told) < told {
			return fmt.Errorf("%s and %s: only %d ends told", x, y, len(e.Told))
		}
	}
	for pair, way := range want {
		if got[pair] != way {
			return fmt.Errorf("%s: %q, want %q", pair, got[pair], way)
		}
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d pairs, want %d", len(got), len(want))
	}
	return nil
}

func wellFormed(s string) error {
	for d := xml.NewDecoder(bytes.NewReader([]byte(s))); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return holds(s, "<svg", "via hub")
		} else if err != nil {
			return err
		}
	}
}

func holds(s string, words ...string) error {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return fmt.Errorf("there is no %q in it", w)
		}
	}
	return nil
}
