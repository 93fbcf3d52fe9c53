package drawing

import (
	_ "embed"
	"fmt"
	"html"
	"math"
	"strings"

	"weft/prog/control"
)

// ink is the style of the picture; the page has more of its own.
//
//go:embed ink.css
var ink string

// Up to these sizes every pair bears its round trip, and every one that is not direct says why it is not.
const (
	allLabelled  = 7 // members
	someLabelled = 16
)

// SVG draws the graph.
func SVG(g control.Graph) []byte {
	l := arrange(g)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" role="img" aria-label="%s">`+"\n<style>%s</style>\n",
		width, height, html.EscapeString(heading(g)), ink)
	fmt.Fprintf(&b, `<rect class="paper" width="%g" height="%g"/>`+"\n", width, height)
	l.heading(&b)
	l.ink(&b)
	l.legend(&b)
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

func heading(g control.Graph) string {
	return fmt.Sprintf("The mesh of %s: %d members, %d pairs", g.Cluster, len(g.Nodes), len(g.Edges))
}

// ink draws pairs and members, which the page has in common with the picture.
func (l *layout) ink(b *strings.Builder) {
	l.pairs(b)
	l.labels(b)
	b.WriteString(`<g class="members">` + "\n")
	for i, s := range l.spots {
		l.member(b, i, s)
	}
	b.WriteString("</g>\n")
}

func (l *layout) pairs(b *strings.Builder) {
	names := namesOf(l.graph)
	crowd := ""
	switch n := len(l.spots); {
	case n > someLabelled:
		crowd = " crowd"
	case n > allLabelled:
		crowd = " many"
	}
	for _, k := range kinds {
		fmt.Fprintf(b, `<g class="pairs %s%s">`+"\n", k.state, crowd)
		for i, e := range l.graph.Edges {
			from, bend, to, ok := l.curve(e)
			if !ok || kindOf(e.State).state != k.state {
				continue
			}
			fmt.Fprintf(b, `<path data-pair="%d" d="M%.1f %.1fQ%.1f %.1f %.1f %.1f"`, i, from.x, from.y, bend.x, bend.y, to.x, to.y)
			if k.dash != "" {
				fmt.Fprintf(b, ` stroke-dasharray="%s"`, k.dash)
			}
			if l.gone[e.A] || l.gone[e.B] {
				b.WriteString(` class="gone"`)
			}
			fmt.Fprintf(b, "><title>%s</title></path>\n", html.EscapeString(about(e, names[e.A], names[e.B])))
		}
		b.WriteString("</g>\n")
	}
}

// labels writes on the pairs what there is room for.
func (l *layout) labels(b *strings.Builder) {
	n := len(l.spots)
	if n > someLabelled {
		return
	}
	b.WriteString(`<g class="labels">` + "\n")
	for i, e := range l.graph.Edges {
		from, bend, to, ok := l.curve(e)
		if !ok || l.gone[e.A] || l.gone[e.B] {
			continue
		}
		text := roundTrip(e.RTTms)
		if e.State != control.EdgeDirect {
			text = strings.TrimSpace(kindOf(e.State).word + " " + text)
			if len(e.Via) > 0 {
				text = strings.TrimSpace("via " + strings.Join(e.Via, ", ") + " " + roundTrip(e.RTTms))
			}
		} else if n > allLabelled {
			continue
		}
		if text == "" {
			continue
		}
		at := half(from, bend, to)
		if n > 3 { // pairs cross in the middle
			share := 0.36
			if n%2 == 0 {
				share = 0.3
			}
			at = along(from, bend, to, share)
		}
		fmt.Fprintf(b, `<text data-label="%d" class="%s" x="%.1f" y="%.1f" font-size="%g">%s</text>`+"\n",
			i, kindOf(e.State).state, at.x, at.y, l.font*0.8, html.EscapeString(text))
	}
	b.WriteString("</g>\n")
}

// along is a point of a curve.
func along(from, bend, to point, t float64) point {
	u := 1 - t
	return point{u*u*from.x + 2*u*t*bend.x + t*t*to.x, u*u*from.y + 2*u*t*bend.y + t*t*to.y}
}

// member draws one: the node that was asked is filled, one that relays has a ring, one that is not alive is crossed out in
// its colour, and one that did not tell has a dashed rim.
func (l *layout) member(b *strings.Builder, i int, s spot) {
	class := "member " + html.EscapeString(s.State)
	if s.Self {
		class += " self"
	}
	if s.Silent != "" {
		class += " silent"
	}
	fmt.Fprintf(b, `<g class="%s" data-member="%d" tabindex="0"><title>%s</title>`, class, i, html.EscapeString(aboutNode(s.GraphNode)))
	if s.Relay {
		fmt.Fprintf(b, `<circle class="relay" cx="%.1f" cy="%.1f" r="%g"/>`, s.at.x, s.at.y, l.dot*1.45)
	}
	fmt.Fprintf(b, `<circle class="dot" cx="%.1f" cy="%.1f" r="%g"/>`, s.at.x, s.at.y, l.dot)
	if l.font > 0 {
		l.name(b, s)
	}
	b.WriteString("</g>\n")
}

// name writes a member's name outside the circle: upright where there is room, else outwards like the spokes of a wheel.
func (l *layout) name(b *strings.Builder, s spot) {
	away := l.dot*1.45 + l.font*0.6
	name := html.EscapeString(shorten(s.Name, 24))
	if len(l.spots) > 24 {
		at := l.place(s.angle, l.radius+away)
		turn, anchor := s.angle*180/math.Pi-90, "start"
		if s.angle > math.Pi {
			turn, anchor = turn+180, "end"
		}
		fmt.Fprintf(b, `<text class="name" x="%.1f" y="%.1f" font-size="%g" text-anchor="%s" transform="rotate(%.1f %.1f %.1f)" dominant-baseline="central">%s</text>`,
			at.x, at.y, l.font, anchor, turn, at.x, at.y, name)
		return
	}
	at := l.place(s.angle, l.radius+away)
	anchor, lift := "middle", 0.0
	switch sin, cos := math.Sin(s.angle), math.Cos(s.angle); {
	case len(l.spots) == 1 || cos < -0.9:
		at = point{s.at.x, s.at.y + away}
		lift = l.font * 0.5
	case cos > 0.9:
		lift = -l.font * 0.8
	case sin > 0:
		anchor = "start"
	default:
		anchor = "end"
	}
	at.x += l.dot * 0.5 * math.Sin(s.angle)
	fmt.Fprintf(b, `<text class="name" x="%.1f" y="%.1f" font-size="%g" text-anchor="%s">%s</text>`, at.x, at.y+lift, l.font, anchor, name)
	if s.Underlay.IsValid() {
		text := s.Underlay.String()
		switch s.NAT {
		case "easy":
			text += " · NAT"
		case "hard":
			text += " · hard NAT"
		}
		fmt.Fprintf(b, `<text class="where" x="%.1f" y="%.1f" font-size="%g" text-anchor="%s">%s</text>`,
			at.x, at.y+lift+l.font, l.font*0.72, anchor, html.EscapeString(text))
	}
}

func shorten(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}

func (l *layout) heading(b *strings.Builder) {
	fmt.Fprintf(b, `<text class="title" x="40" y="52" font-size="24">%s</text>`+"\n", html.EscapeString(l.graph.Cluster))
	fmt.Fprintf(b, `<text class="sub" x="40" y="78" font-size="14">%d members · %d pairs · %s</text>`+"\n", len(l.graph.Nodes), len(l.graph.Edges),
		html.EscapeString(l.graph.Created))
	for i, note := range l.graph.Notes {
		fmt.Fprintf(b, `<text class="sub" x="40" y="%d" font-size="14">%s</text>`+"\n", 98+20*i, html.EscapeString(note))
	}
}

// legend explains the kinds that are there.
func (l *layout) legend(b *strings.Builder) {
	n := counts(l.graph)
	y := height - 30.0
	for _, k := range kinds { // the best at the bottom
		if n[k.state] == 0 {
			continue
		}
		dash := ""
		if k.dash != "" {
			dash = fmt.Sprintf(` stroke-dasharray="%s"`, k.dash)
		}
		fmt.Fprintf(b, `<g class="legend %s"><path d="M40 %.0fh44"%s/><text x="96" y="%.0f" font-size="15">%s <tspan class="sub">%d</tspan></text></g>`+"\n",
			k.state, y-5, dash, y, k.word, n[k.state])
		y -= 26
	}
}
