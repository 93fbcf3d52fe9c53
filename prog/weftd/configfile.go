package weftd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Problems are all that is wrong with a configuration file, in the order of its lines; never empty.
type Problems []error

// Error is the first of them.
func (p Problems) Error() string {
	if len(p) == 1 {
		return p[0].Error()
	}
	return fmt.Sprintf("%v (and %d more)", p[0], len(p)-1)
}

// Unwrap lists them.
func (p Problems) Unwrap() []error { return p }

// and adds a problem, as many as somebody reads at once.
func (p Problems) and(format string, args ...any) Problems {
	if len(p) >= maxProblems {
		return p
	}
	return append(p, fmt.Errorf(format, args...))
}

// whole is nil when there is no problem.
func (p Problems) whole() error {
	if len(p) == 0 {
		return nil
	}
	return p
}

const maxProblems = 20

// Load reads a configuration file into c: a YAML map from Setting.Key to a value or a list of values. The error is
// Problems when the file could be read; each names its line, and a key that does not exist the nearest one that does.
func (c *Config) Load(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	b, err := io.ReadAll(io.LimitReader(f, maxConfigSize+1))
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	return problemsOf(name, c.Parse(b)).whole()
}

// problemsOf puts the file's name before each problem.
func problemsOf(name string, err error) (named Problems) {
	var all Problems
	if !errors.As(err, &all) {
		return nil
	}
	for _, p := range all {
		named = named.and("%s:%w", name, p)
	}
	return named
}

// Parse is Load for bytes. Each problem begins with its line: "7: pool[1]: ...".
func (c *Config) Parse(b []byte) error {
	var bad Problems
	if len(b) > maxConfigSize {
		return bad.and("1: more than %d bytes", maxConfigSize)
	}
	var doc yaml.Node
	in := yaml.NewDecoder(bytes.NewReader(b))
	if err := in.Decode(&doc); errors.Is(err, io.EOF) {
		return nil // an empty file, or one of comments
	} else if err != nil {
		return Problems{yamlError(err)}
	}
	var second yaml.Node
	if err := in.Decode(&second); !errors.Is(err, io.EOF) {
		return bad.and("%d: a second document begins here, and only the first would count", max(second.Line, 1))
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return bad.and("%d: want lines of the form key: value", root.Line)
	}
	settings := Settings()
	line := make(map[string]int)
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		at := slices.IndexFunc(settings, func(s Setting) bool { return s.Key == key.Value })
		if at < 0 {
			bad = bad.and("%w", unknownKey(key, settings))
			continue
		}
		if first, twice := line[key.Value]; twice {
			bad = bad.and("%d: %s: it is set already in line %d", key.Line, key.Value, first)
			continue
		}
		line[key.Value] = key.Line
		text, err := scalars(value, settings[at].many())
		if err != nil {
			bad = bad.and("%d: %s: %w", value.Line, key.Value, err)
		} else if err := settings[at].Set(c, text); err != nil {
			bad = bad.and("%d: %w", key.Line, err)
		}
	}
	return bad.whole()
}

// CheckFile looks at what surrounds the text of a configuration file that c was read from: who else may change it, and who
// may read a token in it.
func (c Config) CheckFile(name string) error {
	st, err := os.Stat(name)
	if err != nil {
		return fmt.Errorf("look at configuration: %w", err)
	}
	var bad Problems
	mode := st.Mode().Perm()
	if mode&0o022 != 0 {
		bad = bad.and("%s: others may change it (mode %#o), and weft runs as root. Try: chmod go-w %s", name, mode, name)
	}
	if secret := c.Join != "" && c.Join != "-" && c.Join[0] != '@'; secret && mode&0o044 != 0 {
		bad = bad.and("%s: join: others may read the token in it (mode %#o). Try: chmod go-r %s, or join: @FILE", name, mode, name)
	}
	return bad.whole()
}

func unknownKey(key *yaml.Node, settings []Setting) error {
	var known []string
	for _, s := range settings {
		known = append(known, s.Key)
	}
	if near := Nearest(key.Value, known); near != "" {
		return fmt.Errorf("%d: %s: there is no such key, did you mean %s?", key.Line, key.Value, near)
	}
	return fmt.Errorf("%d: %s: there is no such key; the keys are %s", key.Line, key.Value, strings.Join(known, ", "))
}

// scalars is the text of a value or, for a setting of many, of a list of values joined by commas.
func scalars(n *yaml.Node, many bool) (string, error) {
	switch {
	case n.Kind == yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "", errors.New("the value is missing")
		}
		return n.Value, nil
	case n.Kind == yaml.SequenceNode && many:
		var all []string
		for i, item := range n.Content {
			if item.Kind != yaml.ScalarNode || item.Tag == "!!null" || strings.Contains(item.Value, ",") {
				return "", fmt.Errorf("item %d: want one plain value", i)
			}
			all = append(all, item.Value)
		}
		return strings.Join(all, ","), nil
	case n.Kind == yaml.SequenceNode:
		return "", errors.New("want one value, not a list")
	case many:
		return "", errors.New("want a value or a list of values")
	}
	return "", errors.New("want a plain value")
}

// yamlError turns "yaml: line 3: ..." into "3: ...".
func yamlError(err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		return errors.New(rest)
	}
	return errors.New("1: " + text)
}

// Nearest is the word that s was probably meant to be, or "".
func Nearest(s string, words []string) string {
	best, found := 1+len(s)/3, ""
	for _, w := range words {
		if d := distance(s, w); d <= best && (found == "" || d < best) {
			best, found = d, w
		}
	}
	if i := slices.IndexFunc(words, func(w string) bool { return len(s) > 3 && strings.HasPrefix(w, s) }); found == "" && i >= 0 {
		return words[i]
	}
	return found
}

// distance counts the insertions, deletions and replacements between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
