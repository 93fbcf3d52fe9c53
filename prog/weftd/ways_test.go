package weftd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"weft/mesh/peer"
	"weft/prog/control"
	"weft/prog/wire"
	"weft/router/sleeve"
	"weft/test/corpus"
)

func nodeID(n byte) peer.ID { return peer.ID{n, 15: n} }

func sampleWays() []way {
	return []way{
		{peer: nodeID(1), state: control.EdgeDirect, transport: "sleeve", rtt: 420 * time.Microsecond, loss: 0.0123, mtu: 1420, reason: "the best"},
		{
			peer: nodeID(2), state: control.EdgeRelayed, transport: "sleeve", via: []peer.ID{nodeID(1), nodeID(3)}, rtt: 30 * time.Millisecond,
			tries: []attempt{
				{via: []peer.ID{nodeID(1)}, active: true, state: "works", rtt: time.Millisecond, mtu: 1420},
				{endpoint: netip.MustParseAddrPort("192.0.2.8:443"), tcp: true, state: "dead", loss: 1, reason: "no answer for 5 s"},
			},
		},
		{peer: nodeID(4), state: control.EdgeDown},
	}
}

var wayComparer = cmp.AllowUnexported(way{}, attempt{})

func TestWaysTravel(t *testing.T) {
	got, err := parseWays(appendWays(sampleWays()))
	if err != nil {
		t.Fatal(err)
	}
	compareAddr := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	if diff := cmp.Diff(sampleWays(), got, wayComparer, compareAddr); diff != "" {
		t.Error(diff)
	}
}

func TestWaysAreBounded(t *testing.T) {
	long := strings.Repeat("ä", 1000)
	var ways []way
	for range maxWays + 10 {
		w := way{state: long, transport: long, reason: long, rtt: -1, loss: 7, mtu: 1 << 20, via: make([]peer.ID, 20)}
		for range 4 {
			w.tries = append(w.tries, attempt{state: long, reason: long})
		}
		ways = append(ways, w)
	}
	b := appendWays(ways)
	got, err := parseWays(b)
	if err != nil || len(b) > 1<<20 || len(got) < 100 {
		t.Fatalf("%d bytes, %d ways, %v", len(b), len(got), err)
	}
	w := got[0]
	if len(w.reason) > maxWayReason || !utf8.ValidString(w.reason) || w.rtt != 0 || w.loss != 1 || w.mtu != 1<<16-1 || len(w.via) != maxWayVia {
		t.Errorf("%+v", w)
	}
}

// What a member says reaches the terminal and the picture of another.
func FuzzParseWays(f *testing.F) {
	corpus.Add(f, *updateCorpus, "three", appendWays(sampleWays()))
	corpus.Add(f, *updateCorpus, "none", appendWays(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		ways, err := parseWays(b)
		if err != nil {
			return
		}
		for _, w := range ways {
			if w.rtt < 0 || w.loss < 0 || w.loss > 1 || len(w.tries) > maxAttempts || strings.ContainsFunc(w.reason, unicode.IsControl) {
				t.Fatalf("%+v", w)
			}
		}
		again, err := parseWays(appendWays(ways))
		if err != nil || len(again) > len(ways) {
			t.Fatalf("%d ways, then %d: %v", len(ways), len(again), err)
		}
	})
}

func TestEdgesAreMadeOfBothEndsWords(t *testing.T) {
	a, b, c, d := nodeID(1), nodeID(2), nodeID(3), nodeID(4)
	members := []peer.Info{{ID: a}, {ID: b}, {ID: c}, {ID: d}}
	told := map[peer.ID][]way{
		a: {
			{peer: b, state: control.EdgeDirect, rtt: 2 * time.Millisecond, loss: 0.1},
			{peer: c, state: control.EdgeRelayed, via: []peer.ID{b, d}, rtt: 9 * time.Millisecond, reason: "hard NAT on both sides"},
			{peer: d, state: control.EdgeDirect},
			{peer: nodeID(9), state: control.EdgeDirect}, // nobody knows it
		},
		b: {{peer: a, state: control.EdgeDirect, rtt: time.Millisecond}, {peer: c, state: "teleported"}, {peer: d, state: control.EdgeDirect}},
		c: {{peer: a, state: control.EdgeDirect}},
		d: {{peer: a, state: control.EdgeDown, reason: "no answer"}},
	}
	name := func(id peer.ID) string { return fmt.Sprintf("n%d", id[0]) }
	var got []string
	for _, e := range edges(members, told, name) {
		got = append(got, fmt.Sprintf("%s %s %.0fms %.1f told=%d %s", e.State, strings.Join(e.Via, ","), e.RTTms, e.Loss, len(e.Told), e.Reason))
	}
	want := []string{
		"direct  1ms 0.1 told=2 ",
		"relayed n2,n4 9ms 0.0 told=2 hard NAT on both sides",
		"one-way  0ms 0.0 told=2 n4 does not reach n1, which reaches it: no answer",
		"unknown  0ms 0.0 told=1 ",
		"direct  0ms 0.0 told=1 ",
		"unknown  0ms 0.0 told=0 ",
	}
	if !slices.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
}

// A way that only the far end has told is drawn from the near one.
func TestRelaysAreNamedFromTheFirstEnd(t *testing.T) {
	a, b := nodeID(1), nodeID(2)
	told := map[peer.ID][]way{b: {{peer: a, state: control.EdgeRelayed, via: []peer.ID{nodeID(7), nodeID(8)}}}}
	e := edges([]peer.Info{{ID: a}, {ID: b}}, told, func(id peer.ID) string { return fmt.Sprint(id[0]) })[0]
	if !slices.Equal(e.Via, []string{"8", "7"}) {
		t.Errorf("via %v", e.Via)
	}
}

func TestAdviceNamesWhatStandsInTheWay(t *testing.T) {
	works := func(state string) way {
		return way{state: state, tries: []attempt{{state: "works", via: []peer.ID{nodeID(9)}}, {state: "dead"}}}
	}
	blocked := way{state: control.EdgeTCP, tries: []attempt{{state: "dead"}, {state: "works", tcp: true, rtt: 1}}}
	for name, c := range map[string]struct {
		a, b end
		want string
	}{
		"direct":                {end{"a", 0, works(control.EdgeDirect)}, end{"b", 0, works(control.EdgeDirect)}, "reach each other directly"},
		"hard on both sides":    {end{"a", peer.NATHard, works(control.EdgeRelayed)}, end{"b", peer.NATHard, works(control.EdgeRelayed)}, "Both are behind a hard NAT"},
		"hard on theirs":        {end{"a", peer.NATEasy, works(control.EdgeRelayed)}, end{"b", peer.NATHard, works(control.EdgeRelayed)}, "b is behind a hard NAT"},
		"not punched yet":       {end{"a", peer.NATNone, works(control.EdgeRelayed)}, end{"b", peer.NATEasy, works(control.EdgeRelayed)}, "forward UDP 6783 to b"},
		"a firewall":            {end{"a", peer.NATNone, works(control.EdgeRelayed)}, end{"b", peer.NATNone, works(control.EdgeRelayed)}, "A firewall stands between a and b"},
		"UDP blocked here":      {end{"a", peer.NATEasy, blocked}, end{"b", peer.NATNone, works(control.EdgeTCP)}, "UDP does not pass at a"},
		"UDP blocked, here":     {end{"a", peer.NATUnknown, blocked}, end{"b", peer.NATNone, blocked}, "UDP does not pass at a"},
		"UDP blocked, there":    {end{"a", peer.NATNone, blocked}, end{"b", peer.NATUnknown, blocked}, "UDP does not pass at b"},
		"UDP blocked, where":    {end{"a", peer.NATUnknown, blocked}, end{"b", peer.NATUnknown, blocked}, "UDP does not pass between a and b"},
		"UDP blocked there":     {end{"a", peer.NATNone, works(control.EdgeTCP)}, end{"b", peer.NATEasy, blocked}, "UDP does not pass at b"},
		"one way":               {end{"a", 0, way{state: control.EdgeDown}}, end{"b", 0, works(control.EdgeDirect)}, "a does not get answers of b"},
		"nothing passes":        {end{"a", 0, way{state: control.EdgeDown}}, end{"b", 0, way{state: control.EdgeDown}}, "No packets pass between a and b"},
		"it does not answer":    {end{"a", 0, way{state: control.EdgeDown}}, end{"b", 0, way{}}, "b is not reached in any way"},
		"both are asleep":       {end{"a", 0, way{state: control.EdgeUnknown}}, end{"b", 0, way{state: control.EdgeUnknown}}, "weft ping b"},
		"one is asleep":         {end{"a", 0, way{state: control.EdgeUnknown}}, end{"b", 0, works(control.EdgeDirect)}, "reach each other directly"},
		"asleep, and silent":    {end{"a", 0, way{state: control.EdgeUnknown}}, end{"b", 0, way{}}, "weft ping b"},
		"it is not known yet":   {end{"a", 0, way{}}, end{"b", 0, way{state: control.EdgeDown}}, "ask again"},
		"relayed, it is silent": {end{"a", peer.NATNone, works(control.EdgeRelayed)}, end{"b", peer.NATNone, way{}}, "A firewall stands"},
		"relayed by TCP":        {end{"a", peer.NATNone, works(control.EdgeRelayed)}, end{"b", 0, works(control.EdgeRelayed)}, "UDP does not pass at b"},
		"it alone did not say":  {end{"a", 0, works(control.EdgeDirect)}, end{"b", 0, way{}}, "reach each other directly"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := advise(c.a, c.b); !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q in it", got, c.want)
			}
		})
	}
}

func TestAdviceAboutTheOwnDataPlane(t *testing.T) {
	for _, c := range []struct {
		err, trouble error
		want         string
	}{
		{wire.ErrLost, errors.New("no such file"), "does not run (no such file)"},
		{fmt.Errorf("ask: %w", context.DeadlineExceeded), nil, "does not answer"},
		{wire.ErrLost, nil, "is being started"},
	} {
		got := adviseWire("a", "/var/lib/weft/wire.log", c.err, c.trouble)
		if !strings.Contains(got, "The data plane of a "+c.want) || strings.HasSuffix(got, ".") {
			t.Errorf("%v, %v: %q", c.err, c.trouble, got)
		}
	}
}

// A peer that sleeps is no fault, and one without a session is.
func TestDoctorOfASessionThatSleeps(t *testing.T) {
	id := nodeID(1)
	check := func(p sleeve.PeerStats) control.Check {
		p.ID = id
		return sessionCheck(wire.Stats{Stats: sleeve.Stats{Peers: []sleeve.PeerStats{p}}}, id)
	}
	if c := check(sleeve.PeerStats{Asleep: true, Reason: "asleep: nothing"}); c.State != control.CheckOK || c.Reason != "asleep: nothing" || c.Hint != "" {
		t.Errorf("asleep: %+v", c)
	}
	if c := check(sleeve.PeerStats{Reason: "no answer"}); c.State != control.CheckFailed || c.Reason != "no answer" {
		t.Errorf("down: %+v", c)
	}
	if c := check(sleeve.PeerStats{Up: true, Cipher: "AES"}); c.State != control.CheckOK || !strings.HasPrefix(c.Reason, "AES") {
		t.Errorf("up: %+v", c)
	}
}
