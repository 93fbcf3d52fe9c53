package drawing

import (
	"fmt"
	"strings"

	"weft/prog/control"
)

// DOT writes the graph in Graphviz's language, for `dot`, `neato` or `circo`.
func DOT(g control.Graph) []byte {
	var b strings.Builder
	b.WriteString("graph weft {\n  layout=circo; overlap=false; splines=true;\n" +
		"  node [shape=box, style=rounded, fontname=\"sans-serif\", fontsize=11];\n  edge [fontname=\"sans-serif\", fontsize=9];\n")
	for _, v := range ordered(g) {
		style := "rounded"
		if v.Self {
			style = "rounded,bold"
		}
		if v.State != control.PeerAlive {
			style = "rounded,dashed"
		}
		label := v.Name
		if v.Underlay.IsValid() {
			label += "\n" + v.Underlay.String()
		}
		fmt.Fprintf(&b, "  %s [label=%s, style=%s, tooltip=%s];\n", quote(v.ID), quote(label), quote(style), quote(aboutNode(v)))
	}
	names := namesOf(g)
	looks := map[string]string{
		control.EdgeDirect:  `color="#2f9e75"`,
		control.EdgeRelayed: `color="#c77d00", style=dashed`,
		control.EdgeTCP:     `color="#7c5cd6", style=dashed`,
		control.EdgeOneWay:  `color="#d1453b", style=dashed`,
		control.EdgeDown:    `color="#d1453b", style=dotted`,
		control.EdgeUnknown: `color="#999999", style=dotted`,
	}
	for _, e := range g.Edges {
		label := roundTrip(e.RTTms)
		if len(e.Via) > 0 {
			label = strings.TrimSpace(label + "\nvia " + strings.Join(e.Via, ", "))
		}
		fmt.Fprintf(&b, "  %s -- %s [%s, label=%s, tooltip=%s];\n", quote(e.A), quote(e.B), looks[kindOf(e.State).state], quote(label),
			quote(about(e, names[e.A], names[e.B])))
	}
	b.WriteString("}\n")
	return []byte(b.String())
}

// quote makes a string of the language; a line feed becomes its \n.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}

func namesOf(g control.Graph) map[string]string {
	names := map[string]string{}
	for _, v := range g.Nodes {
		names[v.ID] = v.Name
	}
	return names
}
