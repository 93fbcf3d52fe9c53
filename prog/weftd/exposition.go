package weftd

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
)

// kind is what the values of a metric mean to their reader.
type kind string

const (
	gauge   kind = "gauge"
	counter kind = "counter" // only grows, until the next start
)

// metric is a family of series that differ in the values of its labels.
type metric struct {
	name, help string
	kind       kind
	labels     []string
}

// exposition gathers series and writes them in the text format 0.0.4, which Prometheus and all its kin read. Written
// here because the client library brings protobuf along: 2.3 MiB and eight modules for sixteen gauges and counters.
type exposition struct {
	families []family // in the order in which their first series came
}

type family struct {
	metric
	series []string
}

const expositionType = "text/plain; version=0.0.4; charset=utf-8"

// add takes one series, with a value for each label of m.
func (e *exposition) add(m metric, value float64, labels ...string) {
	i := slices.IndexFunc(e.families, func(f family) bool { return f.name == m.name })
	if i < 0 {
		i = len(e.families)
		e.families = append(e.families, family{metric: m})
	}
	pairs := make([]string, len(m.labels))
	for i, name := range m.labels {
		text := strings.ToValidUTF8(labels[i], "\uFFFD") // names come from other nodes
		pairs[i] = name + `="` + escapeLabel.Replace(text) + `"`
	}
	slices.Sort(pairs) // by name, as other exporters do: some readers compare the text
	line := m.name
	if len(pairs) > 0 {
		line += "{" + strings.Join(pairs, ",") + "}"
	}
	e.families[i].series = append(e.families[i].series, line+" "+strconv.FormatFloat(value, 'g', -1, 64)+"\n")
}

// text sorts the series of each family, so that two answers can be compared.
func (e *exposition) text() []byte {
	var b bytes.Buffer
	for _, f := range e.families {
		b.WriteString("# HELP " + f.name + " " + escapeHelp.Replace(f.help) + "\n")
		b.WriteString("# TYPE " + f.name + " " + string(f.kind) + "\n")
		slices.Sort(f.series)
		for _, s := range f.series {
			b.WriteString(s)
		}
	}
	return b.Bytes()
}

var (
	escapeHelp  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	escapeLabel = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)
