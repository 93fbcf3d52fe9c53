package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
	"weft/test/netlab"
)

// The outcomes of a cell.
const (
	wayDirect  = "direct"
	wayTCP     = "TCP"
	wayRelayed = "relayed"
)

// expected is how two machines with these kinds of access, and one public machine beside them, come to reach each other.
//
// A hole through an endpoint-independent NAT opens when both send from where the other expects it. A symmetric NAT sends from
// a port that nobody can expect: that is let in by those who filter by address or not at all. Where no UDP leaves a network
// its machines dial by TCP whom they can reach, and have others relay to all else.
func expected(a, b netlab.Access) string {
	if a > b {
		a, b = b, a
	}
	switch {
	case b == netlab.OnlyTCP && a == netlab.Public:
		return wayTCP
	case b == netlab.OnlyWeb, b == netlab.OnlyTCP: // by the one that listens at 443, too
		return wayRelayed
	case a == netlab.BehindStrict && b == netlab.BehindHard, a == netlab.BehindHard:
		return wayRelayed
	}
	return wayDirect
}

// handful are the cells that are played always: one of each outcome and each reason.
func handful() [][2]netlab.Access {
	return [][2]netlab.Access{
		{netlab.Public, netlab.BehindHard},
		{netlab.BehindStrict, netlab.BehindStrict},
		{netlab.BehindHome, netlab.BehindHard},
		{netlab.BehindHard, netlab.BehindHard},
		{netlab.Public, netlab.OnlyTCP},
		{netlab.BehindStrict, netlab.OnlyTCP},
		{netlab.BehindHard, netlab.OnlyWeb},
	}
}

func wholeGrid() (cells [][2]netlab.Access) {
	for i, a := range netlab.Accesses() {
		for _, b := range netlab.Accesses()[i:] {
			cells = append(cells, [2]netlab.Access{a, b})
		}
	}
	return cells
}

// outcome is what came of a cell.
type outcome struct {
	a, b   netlab.Access
	way    string
	reason string
	first  time.Duration // from when both pods were there to their first answer
	settle time.Duration // and until the way was the expected one
}

// Two machines behind every pair of NATs and firewalls, and a public one: pods reach each other, in the way that the NATs
// allow. WEFT_TEST_LONG=1 plays every pair, and UPDATE=1 with it writes the table into site/nat.md.
func TestEveryPairOfNATs(t *testing.T) {
	t.Parallel() // it mostly waits
	long := os.Getenv("WEFT_TEST_LONG") != ""
	cells := handful()
	if long {
		cells = wholeGrid()
	}
	var (
		mu       sync.Mutex // guards outcomes
		outcomes []outcome
	)
	t.Run("cell", func(t *testing.T) {
		for _, c := range cells {
			t.Run(fmt.Sprintf("%v and %v", c[0], c[1]), func(t *testing.T) {
				t.Parallel() // it mostly waits
				o := playCell(t, c[0], c[1])
				mu.Lock()
				defer mu.Unlock()
				outcomes = append(outcomes, o)
			})
		}
	})
	slices.SortFunc(outcomes, func(a, b outcome) int { return cmp.Or(cmp.Compare(a.a, b.a), cmp.Compare(a.b, b.b)) })
	table := gridTable(outcomes)
	t.Logf("pods of two machines and the way between them:\n%s", table)
	if long && os.Getenv("UPDATE") != "" && !t.Failed() {
		if err := replaceGrid(filepath.Join("..", "..", "site", "nat.md"), table); err != nil {
			t.Error(err)
		}
	}
}

// playCell makes one cluster of three.
func playCell(t *testing.T, x, y netlab.Access) outcome {
	s := &story{T: t, lab: netlab.New(t)}
	world := netlab.NewInternet(s.lab)
	hub := cluster.On(world.Home("hub", netlab.Public).Host, programs)
	a := cluster.On(world.Home("a", x).Host, programs)
	b := cluster.On(world.Home("b", y).Host, programs)
	s.machines = []*cluster.Machine{hub, a, b}
	token, err := hub.Found(s.within(startPatience), "--relay-listen", ":443", "--transport", "sleeve")
	s.must(err)
	for _, m := range []*cluster.Machine{a, b} {
		s.must(m.Up("--join", token, "--transport", "sleeve"))
	}
	for _, m := range []*cluster.Machine{a, b} {
		_, err := m.WaitReady(s.within(startPatience), 1)
		s.must(err)
	}
	p, err := a.Attach("1")
	s.must(err)
	q, err := b.Attach("1")
	s.must(err)

	began := time.Now()
	s.must(p.WaitPing(s.within(startPatience), q.Addrs[0]))
	o := outcome{a: x, b: y, first: time.Since(began)}
	want := expected(x, y)
	s.must(cluster.Poll(s.within(3*time.Minute), func() error { // a burst that was missed is repeated after 30 s
		for _, ends := range [][2]*cluster.Machine{{a, b}, {b, a}} {
			way, reason, err := wayOf(s.Context(), ends[0], ends[1].Name())
			if err != nil {
				return err
			}
			if o.way, o.reason = way, cmp.Or(reason, o.reason); way != want {
				return fmt.Errorf("%s reaches %s %s, want %s (%s)", ends[0], ends[1], way, want, reason)
			}
		}
		return nil
	}))
	o.settle = time.Since(began)
	s.must(q.WaitPing(s.within(patience), p.Addrs[0]))
	if x == netlab.BehindHard && y == netlab.BehindHard {
		s.must(cluster.Poll(s.within(patience), func() error {
			if _, reason, err := wayOf(s.Context(), a, "b"); err != nil || !strings.Contains(reason, "hard NAT on both sides") {
				return fmt.Errorf("the reason is %q, %w", reason, err)
			}
			return nil
		}))
	}
	t.Logf("%v and %v: first answer after %.2f s, %s after %.1f s", x, y, o.first.Seconds(), o.way, o.settle.Seconds())
	return o
}

// wayOf asks a machine for the way of one reply of a peer, and why it is that one.
func wayOf(ctx context.Context, m *cluster.Machine, peer string) (way, reason string, err error) {
	if ctx.Err() != nil {
		return "", "", ctx.Err()
	}
	out, err := m.CLI("ping", peer, "-c", "1", "--json")
	if err != nil {
		return "", "", err
	}
	var r control.PingReply
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return "", "", fmt.Errorf("read reply: %w", err)
	}
	st, err := m.Status()
	if err != nil {
		return "", "", err
	}
	for _, p := range st.Peers {
		if p.Name == peer {
			reason = p.Reason
		}
	}
	switch {
	case len(r.Via) > 0:
		return wayRelayed, reason, nil
	case r.TCP:
		return wayTCP, reason, nil
	case r.Path == control.PathDirect:
		return wayDirect, reason, nil
	}
	return r.Path, reason, nil
}

// gridTable is half a square: the ways by kind of access.
func gridTable(all []outcome) string {
	cell := map[[2]netlab.Access]outcome{}
	var kinds []netlab.Access
	for _, o := range all {
		cell[[2]netlab.Access{o.a, o.b}] = o
		kinds = append(kinds, o.a, o.b)
	}
	slices.Sort(kinds)
	kinds = slices.Compact(kinds)
	var b strings.Builder
	b.WriteString("| |")
	for _, k := range kinds {
		fmt.Fprintf(&b, " %v |", k)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(kinds)) + "\n")
	for _, row := range kinds {
		fmt.Fprintf(&b, "| **%v** |", row)
		for _, column := range kinds {
			text := ""
			if o, ok := cell[[2]netlab.Access{row, column}]; ok {
				text = fmt.Sprintf("%s, %.1f s / %.1f s", o.way, o.first.Seconds(), o.settle.Seconds())
			}
			fmt.Fprintf(&b, " %s |", text)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// The lines of site/nat.md between which the table stands.
const (
	gridBegin = "<!-- grid: written by TestEveryPairOfNATs -->\n"
	gridEnd   = "<!-- end of grid -->\n"
)

func replaceGrid(path, table string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok1 := strings.Cut(string(b), gridBegin)
	_, after, ok2 := strings.Cut(rest, gridEnd)
	if !ok1 || !ok2 {
		return fmt.Errorf("%s does not say where the grid goes", path)
	}
	return os.WriteFile(path, []byte(before+gridBegin+"\n"+table+"\n"+gridEnd+after), 0o644)
}
