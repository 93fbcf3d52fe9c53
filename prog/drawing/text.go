package drawing

import (
	"fmt"
	"strings"

	"weft/prog/control"
)

// kind is how one state of a pair looks. The dash tells it without colour.
type kind struct {
	state string
	word  string
	dash  string
	about string
}

// kinds are the states of a pair from the best to the worst, which is also the order in which they are drawn: what is
// wrong lies on top.
var kinds = []kind{
	{control.EdgeUnknown, "not told", "1 7", "neither end has told"},
	{control.EdgeDirect, "direct", "", "packets go straight"},
	{control.EdgeRelayed, "relayed", "10 5", "other members carry sealed packets"},
	{control.EdgeTCP, "TCP", "10 4 2 4", "UDP does not pass, so packets travel in a TCP connection"},
	{control.EdgeOneWay, "one way", "16 6 3 6", "one end reaches the other and is not reached"},
	{control.EdgeDown, "down", "3 5", "no packets pass"},
}

func kindOf(state string) kind {
	for _, k := range kinds {
		if k.state == state {
			return k
		}
	}
	return kinds[0]
}

// roundTrip is a round trip in as many digits as mean something.
func roundTrip(ms float64) string {
	switch {
	case ms <= 0:
		return ""
	case ms < 10:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// about is a pair in one sentence.
func about(e control.GraphEdge, a, b string) string {
	s := a + " – " + b + ": " + kindOf(e.State).word
	if len(e.Via) > 0 {
		s += " via " + strings.Join(e.Via, ", ")
	}
	if rtt := roundTrip(e.RTTms); rtt != "" {
		s += ", " + rtt
	}
	if e.Loss >= 0.001 {
		s += fmt.Sprintf(", %.1f %% lost", e.Loss*100)
	}
	if e.Transport != "" {
		s += ", " + e.Transport
	}
	if e.Reason != "" {
		s += " (" + e.Reason + ")"
	}
	return s
}

// aboutNode is a member in one sentence.
func aboutNode(v control.GraphNode) string {
	s := v.Name + ", " + v.State
	if v.Underlay.IsValid() {
		s += ", " + v.Underlay.String()
	}
	switch v.NAT {
	case "easy":
		s += ", behind NAT"
	case "hard":
		s += ", behind a hard NAT"
	}
	if v.Relay {
		s += ", relays for others"
	}
	if v.Silent != "" {
		s += "; " + v.Silent
	}
	return s
}

// counts says how many pairs there are of each kind.
func counts(g control.Graph) map[string]int {
	n := map[string]int{}
	for _, e := range g.Edges {
		n[kindOf(e.State).state]++
	}
	return n
}
