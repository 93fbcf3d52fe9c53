package weftd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Load reads a configuration file into c: a YAML map from Setting.Key to a value or a list of values. Errors name the
// line; a key that does not exist is an error, with the nearest one that does.
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
	if err := c.Parse(b); err != nil {
		return fmt.Errorf("%s:%w", name, err)
	}
	return nil
}

// Parse is Load for bytes. Errors begin with the line: "7: pool[1]: ...".
func (c *Config) Parse(b []byte) error {
	if len(b) > maxConfigSize {
		return fmt.Errorf("1: more than %d bytes", maxConfigSize)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return yamlError(err)
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil // an empty file, or one of comments
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("%d: want lines of the form key: value", root.Line)
	}
	settings := Settings()
	line := make(map[string]int)
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		at := slices.IndexFunc(settings, func(s Setting) bool { return s.Key == key.Value })
		if at < 0 {
			return unknownKey(key, settings)
		}
		if first, twice := line[key.Value]; twice {
			return fmt.Errorf("%d: %s: it is set already in line %d", key.Line, key.Value, first)
		}
		line[key.Value] = key.Line
		text, err := scalars(value)
		if err != nil {
			return fmt.Errorf("%d: %s: %w", value.Line, key.Value, err)
		}
		if err := settings[at].Set(c, text); err != nil {
			return fmt.Errorf("%d: %w", key.Line, err)
		}
	}
	return nil
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

// scalars is the text of a value, or of a list of values joined by commas.
func scalars(n *yaml.Node) (string, error) {
	switch n.Kind {
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "", errors.New("the value is missing")
		}
		return n.Value, nil
	case yaml.SequenceNode:
		var all []string
		for i, item := range n.Content {
			if item.Kind != yaml.ScalarNode || item.Tag == "!!null" || strings.Contains(item.Value, ",") {
				return "", fmt.Errorf("item %d: want one plain value", i)
			}
			all = append(all, item.Value)
		}
		return strings.Join(all, ","), nil
	}
	return "", errors.New("want a value or a list of values")
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
