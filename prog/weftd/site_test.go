package weftd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The pages that list what is in a table of this package are made from it: UPDATE=1 writes them.
func TestPages(t *testing.T) {
	for name, text := range map[string]string{"metrics.md": metricsPage(), "config.md": configPage()} {
		file := filepath.Join("..", "..", "site", name)
		if os.Getenv("UPDATE") != "" {
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != text {
			t.Errorf("%s is not what the tables say (%v). Type: UPDATE=1 go test ./prog/weftd -run TestPages", file, err)
		}
	}
}

func metricsPage() string {
	var b strings.Builder
	b.WriteString(`# Metrics

The daemon serves Prometheus metrics at ` + "`http://127.0.0.1:6782/metrics`" + ` (` + "`--metrics-listen`" + ` moves it, ` + "`none`" + ` switches it off).
Beside it are ` + "`/healthz`" + `, which answers 200 while the daemon lives, and ` + "`/readyz`" + `, which answers 200 when pods can be
attached, else 503 with the reason.

Peers are named by their ID: names may be chosen twice. A gauge that is not known is left out. Names and labels change only
with an entry in the changelog.

| Name | Type | Labels | Meaning |
|---|---|---|---|
`)
	for _, m := range metricTable() {
		kind, labels := "gauge", "–"
		if m.kind == counter {
			kind = "counter"
		}
		if len(m.labels) > 0 {
			labels = "`" + strings.Join(m.labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.name, kind, labels, m.help)
	}
	b.WriteString(`
The bytes of a peer that WireGuard carries include WireGuard's own, and the age of its key is that of the last handshake, which
WireGuard repeats after two minutes: an age of more than three while packets flow is a tunnel that does not come up again.

States of ` + "`weft_members`" + ` are alive, suspect, dead and removed. ` + "`weft_events_total`" + ` counts since the start of the process that
counts: the daemon's for mesh, the data plane's for sleeve and wire, the kernel's table for guard.
`)
	return b.String()
}

func configPage() string {
	var b strings.Builder
	b.WriteString(`# Configuration

Every setting is a flag of ` + "`" + `weft up` + "`" + ` (` + "`" + `--name alpha` + "`" + `) and a key of the configuration file (` + "`" + `name: alpha` + "`" + `), ` + "`" + `/etc/weft/weft.yaml` + "`" + `
unless ` + "`" + `--config` + "`" + ` or ` + "`" + `WEFT_CONFIG` + "`" + ` names another; the file need not exist. Some are environment variables too. A flag wins over
the variable, the variable over the file.

| Key | Value | Variable | Meaning |
|---|---|---|---|
`)
	for _, s := range Settings() {
		value, env := "`true` or `false`", "–"
		if s.Arg != "" {
			value = "`" + s.Arg + "`"
		}
		if s.Env != "" {
			env = "`" + s.Env + "`"
		}
		key := "`" + s.Key + "`"
		if s.Global {
			key += " ¹"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", key, value, env, s.Help)
	}
	b.WriteString(`
¹ means the same for every command.

## Values

| Value | is written |
|---|---|
| ` + "`" + `ADDR` + "`" + ` | an address with a port, ` + "`" + `192.0.2.7:6783` + "`" + ` or ` + "`" + `[2001:db8::7]:6783` + "`" + `, or a port alone, ` + "`" + `:6783` + "`" + `; for ` + "`" + `advertise` + "`" + ` the port may be left out |
| ` + "`" + `CIDR` + "`" + ` | a network without host bits, ` + "`" + `10.32.0.0/12` + "`" + ` |
| ` + "`" + `CIDR,…` + "`" + `, ` + "`" + `ADDR,…` + "`" + `, ` + "`" + `NAME,…` + "`" + ` | several of them with commas between them, or in the file as a YAML list |
| ` + "`" + `DIR` + "`" + `, ` + "`" + `PATH` + "`" + ` | an absolute path |
| ` + "`" + `D` + "`" + `, ` + "`" + `DURATION` + "`" + ` | a number with its unit: ` + "`" + `90s` + "`" + `, ` + "`" + `10m` + "`" + `, ` + "`" + `12h` + "`" + `; for ` + "`" + `remove-after` + "`" + ` also days, ` + "`" + `30d` + "`" + ` |
| ` + "`" + `TOKEN` + "`" + ` | the token, ` + "`" + `@FILE` + "`" + ` for the file that holds it, or ` + "`" + `-` + "`" + ` for standard input |
| ` + "`" + `true` + "`" + ` or ` + "`" + `false` + "`" + ` | these two words; ` + "`" + `yes` + "`" + ` and ` + "`" + `on` + "`" + ` are none. As a flag the name alone: ` + "`" + `--docker` + "`" + ` |

Quote in the file what YAML reads as something else: ` + "`" + `":6783"` + "`" + `, ` + "`" + `"-"` + "`" + `, ` + "`" + `"@/root/token"` + "`" + `.

## The file

It is YAML, one document, one line per setting. It is read strictly: a key that does not exist is an error, with the nearest one
that does; so is one that is set twice, a value of the wrong kind or without its unit, and a list where one value is wanted. A
daemon with such a file does not start, and a running one is not affected: the file is read at the start only.

` + "`" + `weft config check [FILE]` + "`" + ` reads it as the daemon would, and prints what is then in force, defaults included; a token is blotted
out. Otherwise it prints every problem with its line, ` + "`" + `weft.yaml:3: …` + "`" + `. It also looks at the file's mode: nobody but its owner may
change it, for weft runs as root, and nobody else may read it if a token is in it.

| exit status | means |
|---|---|
| 0 | the file is good, or is not there and was not asked for by name |
| 1 | something is wrong; or the file that was asked for cannot be read |
| 2 | the command was called wrongly |

An example with much of what there is, [examples/weft.yaml](../examples/weft.yaml):

<!-- run -->
` + "`" + `` + "`" + `` + "`" + `sh
weft config check examples/weft.yaml
` + "`" + `` + "`" + `` + "`" + `
`)
	return b.String()
}

func TestMetricNames(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range metricTable() {
		total := strings.HasSuffix(m.name, "_total")
		switch {
		case !strings.HasPrefix(m.name, "weft_"), seen[m.name]:
			t.Errorf("%s: not ours, or there twice", m.name)
		case total != (m.kind == counter):
			t.Errorf("%s: counters, and they alone, end in _total", m.name)
		case m.help == "" || m.help[len(m.help)-1] != '.' || strings.Contains(m.help, "|"):
			t.Errorf("%s: help %q", m.name, m.help)
		}
		seen[m.name] = true
	}
}
