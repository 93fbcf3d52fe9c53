package test

import (
	"cmp"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"weft/mesh/peer"
)

// What the program says and what the pages say about it are held together here: help, error sentences, log keys.

var update = flag.Bool("update", os.Getenv("UPDATE") != "", "write what the program says into the pages")

const (
	pageCommands = "site/cli.md"
	pageErrors   = "site/troubleshooting.md"
	pageLogs     = "site/operate.md" // and the table of quorums
)

// Every command has a section of its own, which shows its help. UPDATE=1 in the environment writes the help anew.
func TestEveryCommandHasItsSection(t *testing.T) {
	help := func(words ...string) string {
		t.Helper()
		out, err := exec.Command(weft(t), append(words, "--help")...).CombinedOutput()
		if err != nil {
			t.Fatalf("weft %s --help: %v\n%s", strings.Join(words, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	text := read(t, pageCommands)
	sections := regexp.MustCompile("(?ms)^## (weft[^\n]*)\n(.*?)```text\n(.*?)```\n").FindAllStringSubmatchIndex(text, -1)
	var has []string
	for _, at := range slices.Backward(sections) {
		title := text[at[2]:at[3]]
		has = append(has, title)
		says := help(strings.Fields(title)[1:]...) + "\n"
		if text[at[6]:at[7]] == says {
			continue
		}
		if !*update {
			t.Errorf("%s: the section %q does not show what weft says: UPDATE=1 go test ./test -run %s", pageCommands, title, t.Name())
		}
		text = text[:at[6]] + says + text[at[7]:]
	}
	if *update {
		if err := os.WriteFile(filepath.Join(root(t), pageCommands), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The commands that help lists, and those below them.
	want := []string{"weft"}
	for i := 0; i < len(want); i++ {
		for _, m := range regexp.MustCompile(`(?m)^  ([a-z]+)  +\S`).FindAllStringSubmatch(help(strings.Fields(want[i])[1:]...), -1) {
			want = append(want, want[i]+" "+m[1])
		}
	}
	slices.Sort(want)
	if slices.Sort(has); !slices.Equal(has, want) {
		t.Errorf("%s has the sections\n%q\nand the commands are\n%q", pageCommands, has, want)
	}
}

// sources parses what is not a test below some folders.
func sources(t *testing.T, folders ...string) map[string]*ast.File {
	t.Helper()
	files, set := map[string]*ast.File{}, token.NewFileSet()
	for _, dir := range folders {
		err := filepath.WalkDir(filepath.Join(root(t), dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Name() == "controltest" {
				return fs.SkipDir
			}
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
			files[path] = f
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

var verb = regexp.MustCompile(`%[-+#0-9.*]*[a-z]`)

// fixed is the longest piece of an expression's string literals that is the same in every run.
func fixed(e ast.Expr) string {
	longest := ""
	ast.Inspect(e, func(n ast.Node) bool {
		if e, ok := n.(ast.Expr); ok {
			for _, piece := range verb.Split(literal(e), -1) {
				if len(piece) > len(longest) {
					longest = piece
				}
			}
		}
		return true
	})
	return strings.TrimSpace(longest)
}

// sentences are the errors that were written for people: what refuses a join, what is wrong with a token, and every
// control.Error but those about the words of the command line itself.
func sentences(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for path, f := range sources(t, "mesh/join", "crypto/token", "prog/control", "prog/weftd", "cmd/weft") {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if name, ok := n.Fun.(*ast.Ident); ok && name.Name == "refuse" && len(n.Args) == 4 {
					found[fixed(n.Args[1])] = path
				}
			case *ast.CompositeLit:
				fields := map[string]ast.Expr{}
				for _, e := range n.Elts {
					if kv, ok := e.(*ast.KeyValueExpr); ok {
						if key, ok := kv.Key.(*ast.Ident); ok {
							fields[key.Name] = kv.Value
						}
					}
				}
				words := fields["Message"]
				if words == nil {
					words = fields["Sentence"]
				}
				if code, ok := fields["Code"]; ok && words != nil && !isUsage(code) {
					if s := fixed(words); s != "" {
						found[s] = path
					}
				}
			}
			return true
		})
	}
	return found
}

func isUsage(code ast.Expr) bool {
	switch c := code.(type) {
	case *ast.Ident:
		return c.Name == "Usage"
	case *ast.SelectorExpr:
		return c.Sel.Name == "Usage"
	}
	return false
}

// The page about trouble has every such sentence, in a heading or in the running text, between backticks.
func TestEveryErrorIsExplained(t *testing.T) {
	text := strings.Join(strings.Fields(read(t, pageErrors)), " ")
	found := sentences(t)
	if len(found) < 30 {
		t.Fatalf("only %d sentences were found in the sources", len(found))
	}
	for _, s := range slices.Sorted(maps.Keys(found)) {
		if !strings.Contains(text, s) {
			t.Errorf("%s does not explain %q (%s)", pageErrors, s, found[s])
		}
	}
}

// What the page quotes is in the sources: between backticks in headings and in the first column of tables. "…" stands
// for what differs.
func TestQuotedErrorsAreReal(t *testing.T) {
	var source strings.Builder
	for _, f := range sources(t, "mesh", "crypto", "prog", "cmd", "ipam", "router", "plugin") {
		ast.Inspect(f, func(n ast.Node) bool {
			e, ok := n.(ast.Expr)
			if !ok {
				return true
			}
			s := whole(e)
			source.WriteString(s + "\n")
			return s == ""
		})
	}
	all := source.String()
	for i, line := range strings.Split(read(t, pageErrors), "\n") {
		if !strings.HasPrefix(line, "### ") && !strings.HasPrefix(line, "| `") {
			continue
		}
		quote := regexp.MustCompile("`([^`]*)`").FindStringSubmatch(line)
		if quote == nil {
			continue
		}
		for piece := range strings.SplitSeq(quote[1], "…") {
			if piece = strings.Trim(piece, " ():,."); len(piece) > 3 && !strings.Contains(all, piece) {
				t.Errorf("%s:%d: nothing says %q", pageErrors, i+1, piece)
			}
		}
	}
}

// whole is a string in the sources: a literal, or several that are added up. What differs from run to run is "…".
func whole(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		return verb.ReplaceAllString(literal(e), "…")
	case *ast.BinaryExpr:
		if x, y := whole(e.X), whole(e.Y); e.Op == token.ADD && (x != "" || y != "") {
			return cmp.Or(x, "…") + cmp.Or(y, "…")
		}
	}
	return ""
}

// The table of log keys is complete, and has no others.
func TestLogKeysAreInTheTable(t *testing.T) {
	used := map[string]string{}
	for path, f := range sources(t, "cmd", "prog", "mesh", "ipam", "router", "crypto", "plugin") {
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			fun, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			first := map[string]int{"Debug": 1, "Info": 1, "Warn": 1, "Error": 1, "With": 0}
			from, logs := first[fun.Sel.Name]
			if !logs || from == 1 && (len(call.Args) == 0 || literal(call.Args[0]) == "") {
				return true
			}
			for i := from; i < len(call.Args); i += 2 {
				if key := literal(call.Args[i]); key != "" {
					used[key] = path
				}
			}
			return true
		})
	}
	var table []string
	_, section, found := strings.Cut(read(t, pageLogs), "\n## Logs\n")
	if !found {
		t.Fatalf("%s has no section about logs", pageLogs)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	for _, m := range regexp.MustCompile("(?m)^\\| ((?:`[a-z_]+`(?:, )?)+) \\|").FindAllStringSubmatch(section, -1) {
		for _, key := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(m[1], -1) {
			table = append(table, key[1])
		}
	}
	for _, key := range slices.Sorted(maps.Keys(used)) {
		if !slices.Contains(table, key) {
			t.Errorf("%s: the table of log keys lacks %q (%s)", pageLogs, key, used[key])
		}
	}
	for _, key := range table {
		if used[key] == "" {
			t.Errorf("%s: nothing logs %q", pageLogs, key)
		}
	}
}

// The table of quorums is what the rule says.
func TestQuorumTableIsTheRule(t *testing.T) {
	for n := 1; n <= 5; n++ {
		voters := make([]peer.Voter, n)
		for i := range voters {
			voters[i] = peer.Voter{ID: peer.ID{byte(i + 1)}, JoinSeq: uint64(i)}
		}
		// enough is the least number of which any choice is a quorum, of all or of those with the oldest.
		enough := func(withOldest bool) int {
			for k := 1; ; k++ {
				good := true
				for choice := range 1 << n {
					yes := peer.Set{}
					for i := range n {
						if choice>>i&1 == 1 {
							yes.Add(voters[i].ID)
						}
					}
					if len(yes) == k && (choice&1 == 1 || !withOldest) {
						good = good && peer.Quorum(voters, yes)
					}
				}
				if good {
					return k
				}
			}
		}
		row := fmt.Sprintf("| %d | any %d", n, enough(false))
		if with := enough(true); with < enough(false) {
			row += fmt.Sprintf(", or %d with the oldest", with)
		}
		if !strings.Contains(read(t, pageLogs), row+" |") {
			t.Errorf("%s lacks the row %q", pageLogs, row)
		}
	}
}

func literal(e ast.Expr) string {
	l, ok := e.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return ""
	}
	s, _ := strconv.Unquote(l.Value)
	return s
}
