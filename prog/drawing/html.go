package drawing

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"html"
	"slices"
	"strings"

	"weft/prog/control"
)

//go:embed page.css
var pageStyle string

//go:embed page.js
var pageScript string

// policy is what the page may load: nothing, from nowhere. What it needs is in it.
const policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

// HTML draws the graph as one page that needs nothing else: it opens from a disk, in an e-mail, without a network. Members
// and pairs can be picked; without scripts it is still the picture.
func HTML(g control.Graph) ([]byte, error) {
	l := arrange(g)
	// The members in the order of the picture; json writes no <, so nothing in it ends the script.
	data := struct {
		control.Graph
		Nodes []control.GraphNode `json:"nodes"`
		Kinds []string            `json:"kinds"`
		Words map[string]string   `json:"words"`
	}{Graph: g, Words: map[string]string{}}
	for _, s := range l.spots {
		data.Nodes = append(data.Nodes, s.GraphNode)
	}
	for _, k := range kinds {
		data.Kinds = append(data.Kinds, k.state)
		data.Words[k.state] = k.word
	}
	encoded, err := json.Marshal(data)
	if err != nil {
		return nil, fmt.Errorf("encode graph: %w", err)
	}

	var b strings.Builder
	title := html.EscapeString("weft " + g.Cluster)
	fmt.Fprintf(&b, `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="%s">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>%s</title>
<style>%s%s</style>
</head>
<body>
`, policy, title, ink, pageStyle)
	// Room above and below is for the heading and the legend of the picture alone: here they are beside it.
	fmt.Fprintf(&b, "<main>\n"+`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 %g %g %g" role="img" aria-label="%s">`+"\n",
		margin, width, height-2*margin, html.EscapeString(heading(g)))
	l.ink(&b)
	b.WriteString("</svg>\n</main>\n<aside>\n")
	fmt.Fprintf(&b, "<h1>%s</h1>\n<p class=\"sub\">%d members · %d pairs<br>%s</p>\n", html.EscapeString(g.Cluster), len(g.Nodes), len(g.Edges),
		html.EscapeString(g.Created))
	for _, note := range g.Notes {
		fmt.Fprintf(&b, "<p class=\"note\">%s</p>\n", html.EscapeString(note))
	}
	chips(&b, g)
	b.WriteString(`<input id="find" type="search" placeholder="Find a member" aria-label="Find a member" hidden>` + "\n" +
		`<section id="detail" aria-live="polite">` + "\n")
	trouble(&b, g)
	fmt.Fprintf(&b, "</section>\n</aside>\n<script type=\"application/json\" id=\"graph\">%s</script>\n<script>%s</script>\n</body>\n</html>\n",
		encoded, pageScript)
	return []byte(b.String()), nil
}

// margin is what the page cuts off the picture at the top and at the bottom.
const margin = 60.0

// chips are the legend, and with scripts the switches of each kind.
func chips(b *strings.Builder, g control.Graph) {
	n := counts(g)
	b.WriteString("<div class=\"chips\">\n")
	for _, k := range slices.Backward(kinds) {
		if n[k.state] == 0 {
			continue
		}
		dash := ""
		if k.dash != "" {
			dash = fmt.Sprintf(` stroke-dasharray="%s"`, k.dash)
		}
		fmt.Fprintf(b, `<label title="%s"><input type="checkbox" data-kind="%s" checked hidden><svg class="%s" viewBox="0 0 44 10" aria-hidden="true">`+
			`<g class="legend %s"><path d="M2 5h40"%s/></g></svg>%s <b>%d</b></label>`+"\n", k.about, k.state, k.state, k.state, dash, k.word, n[k.state])
	}
	b.WriteString("</div>\n")
}

// trouble lists the pairs that are not direct, the worst first, and the members that are away.
func trouble(b *strings.Builder, g control.Graph) {
	const most = 200
	names, shown, away := namesOf(g), 0, gone(g)
	for _, k := range slices.Backward(kinds) {
		if k.state == control.EdgeDirect || k.state == control.EdgeUnknown {
			continue
		}
		for _, e := range g.Edges {
			if kindOf(e.State).state != k.state || away[e.A] || away[e.B] {
				continue
			}
			if shown++; shown > most {
				continue
			}
			if shown == 1 {
				b.WriteString("<h2>Not direct</h2>\n<ul>\n")
			}
			fmt.Fprintf(b, "<li class=\"%s\">%s</li>\n", k.state, html.EscapeString(about(e, names[e.A], names[e.B])))
		}
	}
	switch {
	case shown == 0:
		b.WriteString("<p class=\"sub\">Every pair of members that are there is direct, as far as was told.</p>\n")
	case shown > most:
		fmt.Fprintf(b, "</ul>\n<p class=\"sub\">and %d more</p>\n", shown-most)
	default:
		b.WriteString("</ul>\n")
	}
	if len(away) == 0 {
		return
	}
	b.WriteString("<h2>Away</h2>\n<ul>\n")
	for _, v := range g.Nodes {
		if away[v.ID] {
			fmt.Fprintf(b, "<li class=\"down\">%s</li>\n", html.EscapeString(aboutNode(v)))
		}
	}
	b.WriteString("</ul>\n")
}
