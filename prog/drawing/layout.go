package drawing

import (
	"cmp"
	"math"
	"slices"

	"weft/prog/control"
)

// The paper. Units are those of the SVG's viewBox.
const (
	width  = 1200.0
	height = 1000.0
	middle = height / 2
)

// point is a place on the paper.
type point struct{ x, y float64 }

// spot is a member on the paper.
type spot struct {
	control.GraphNode
	at    point
	angle float64 // from the middle, radians, clockwise from the top
}

// layout is a picture without ink.
type layout struct {
	graph  control.Graph
	spots  []spot
	index  map[string]int  // of spots by ID
	gone   map[string]bool // IDs of members whose pairs are all down, and no wonder
	radius float64         // of the circle of members
	dot    float64         // radius of a member
	font   float64
	pull   float64 // how far pairs bend towards the middle: 0 straight, 1 through it
}

// arrange puts the members on the circle.
func arrange(g control.Graph) *layout {
	l := &layout{graph: g, index: map[string]int{}, gone: gone(g)}
	n := len(g.Nodes)
	switch {
	case n <= 8:
		l.radius, l.dot, l.font = 300, 22, 20
	case n <= 24:
		l.radius, l.dot, l.font, l.pull = 330, 15, 16, 0.25
	case n <= 100:
		l.radius, l.dot, l.font, l.pull = 340, 8, 12.5, 0.45
	default:
		l.radius, l.dot, l.font, l.pull = 360, 3.5, 0, 0.5 // too many for names
	}
	for i, v := range ordered(g) {
		angle := 2 * math.Pi * float64(i) / float64(max(n, 1))
		s := spot{GraphNode: v, angle: angle}
		s.at = l.place(angle, l.radius)
		if n == 1 {
			s.at = point{width / 2, middle}
		}
		l.index[v.ID] = len(l.spots)
		l.spots = append(l.spots, s)
	}
	return l
}

func (l *layout) place(angle, radius float64) point {
	return point{width/2 + radius*math.Sin(angle), middle - radius*math.Cos(angle)}
}

// ordered begins with the node that was asked and goes on with the nearest of those that are left, so that a site stays
// together. Who was not measured comes last, by name.
func ordered(g control.Graph) []control.GraphNode {
	type pair struct{ a, b string }
	rtt := map[pair]float64{}
	for _, e := range g.Edges {
		if e.RTTms > 0 {
			rtt[pair{e.A, e.B}], rtt[pair{e.B, e.A}] = e.RTTms, e.RTTms
		}
	}
	left := slices.Clone(g.Nodes)
	slices.SortStableFunc(left, func(a, b control.GraphNode) int {
		switch {
		case a.Self != b.Self && a.Self:
			return -1
		case a.Self != b.Self:
			return 1
		}
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	var out []control.GraphNode
	for len(left) > 0 {
		next := 0
		if len(out) > 0 {
			last, best := out[len(out)-1].ID, math.Inf(1)
			for i, v := range left {
				if d, ok := rtt[pair{last, v.ID}]; ok && d < best {
					next, best = i, d
				}
			}
		}
		out = append(out, left[next])
		left = slices.Delete(left, next, next+1)
	}
	return out
}

// curve is the way of a pair over the paper: from, control point, to, of a quadratic Bézier curve.
func (l *layout) curve(e control.GraphEdge) (from, bend, to point, ok bool) {
	i, ok1 := l.index[e.A]
	j, ok2 := l.index[e.B]
	if !ok1 || !ok2 {
		return from, bend, to, false
	}
	from, to = l.spots[i].at, l.spots[j].at
	half := point{(from.x + to.x) / 2, (from.y + to.y) / 2}
	bend = point{half.x + (width/2-half.x)*l.pull, half.y + (middle-half.y)*l.pull}
	return from, bend, to, true
}

// half is the middle of a curve.
func half(from, bend, to point) point {
	return point{(from.x + 2*bend.x + to.x) / 4, (from.y + 2*bend.y + to.y) / 4}
}

// gone lists the members that are not alive and reached by nobody: that is one fact about them, not one about each pair.
func gone(g control.Graph) map[string]bool {
	ids := map[string]bool{}
	for _, v := range g.Nodes {
		if v.State != control.PeerAlive {
			ids[v.ID] = true
		}
	}
	for _, e := range g.Edges {
		if e.State != control.EdgeDown && e.State != control.EdgeUnknown {
			delete(ids, e.A)
			delete(ids, e.B)
		}
	}
	return ids
}
