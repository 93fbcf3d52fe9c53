package test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// Snippets of the documentation are held to what the program does. A block of sh is
//
//   - executed here, when the line before it is <!-- run -->: quick things that need neither root nor a cluster; or else
//   - read line by line: weft commands and their flags must be known to the program, make targets to the Makefile, and any
//     other command must stand in the table below with the place where it is really run.
var runElsewhere = []struct{ begins, where string }{
	{"apt-get install", ".ci/run"},
	{"apt install", ".ci/run"},
	{"git clone", ".ci/run"}, // has what was cloned
	{"cd weft", ".ci/run"},
	{"cd ", ".ci/run"},
	{"nsenter --net=", "test/demo/story.go"}, // prints the line
	{"ip netns add", "test/readme_linux_test.go"},
	{"ping ", "test/demo/story.go"},
	{"curl ", "test/demo/story.go"},
	{"systemctl ", "prog/weftd"}, // readiness is tested, systemd itself is not
	{"go test ", "Makefile"},
	{"install ", "Makefile"},
	{"cp bin/weft ", "Makefile"},
	{"scp bin/weft ", "Makefile"},
}

const snippetTimeout = time.Minute

type snippet struct {
	file  string
	line  int // of its first line
	run   bool
	lines []string
}

func documents(t *testing.T) []string {
	t.Helper()
	var files []string
	for _, f := range []string{"README.md", "CONTRIBUTING.md", "SECURITY.md"} {
		if _, err := os.Stat(filepath.Join(root(t), f)); err == nil {
			files = append(files, f)
		}
	}
	err := filepath.WalkDir(filepath.Join(root(t), "site"), func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "node_modules":
			return fs.SkipDir
		case strings.HasSuffix(path, ".md"):
			rel, err := filepath.Rel(root(t), path)
			files = append(files, rel)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// snippets finds the sh blocks of a Markdown file; text is what the file holds.
func snippets(file, text string) []snippet {
	var all []snippet
	var open *snippet
	before := ""
	for i, line := range strings.Split(text, "\n") {
		trimmed := strings.TrimSpace(line)
		switch {
		case open == nil && (trimmed == "```sh" || strings.HasPrefix(trimmed, "```sh ")):
			open = &snippet{file: file, line: i + 2, run: before == "<!-- run -->"}
		case open != nil && trimmed == "```":
			all = append(all, *open)
			open = nil
		case open != nil:
			open.lines = append(open.lines, line)
		}
		if trimmed != "" {
			before = trimmed
		}
	}
	return all
}

var trailingComment = regexp.MustCompile(`(^|\s)#.*$`)

// commands are the lines that somebody would type: no comments, no sudo, continued lines joined, pipes cut apart.
func (s snippet) commands() []string {
	text := strings.ReplaceAll(strings.Join(s.lines, "\n"), "\\\n", " ")
	var out []string
	for line := range strings.SplitSeq(text, "\n") {
		line = trailingComment.ReplaceAllString(line, "")
		for _, part := range regexp.MustCompile(`\s*(&&|\|\||\||;)\s*`).Split(line, -1) {
			part = strings.TrimPrefix(strings.TrimSpace(part), "$ ")
			part = strings.TrimPrefix(part, "sudo ")
			if part = strings.TrimSpace(part); part != "" {
				out = append(out, part)
			}
		}
	}
	return out
}

func TestSnippetsAreFoundAndTakenApart(t *testing.T) {
	text := "# Title\n\n```sh\nsudo make demo   # all of it\nweft up --init \\\n  --name a\n```\n\n<!-- run -->\n\n```sh\necho hi | cat\n```\n```text\nnot this\n```\n"
	got := snippets("x.md", text)
	if len(got) != 2 || got[0].run || !got[1].run || got[0].line != 4 {
		t.Fatalf("%+v", got)
	}
	if c := got[0].commands(); !slices.Equal(c, []string{"make demo", "weft up --init    --name a"}) {
		t.Errorf("%q", c)
	}
	if c := got[1].commands(); !slices.Equal(c, []string{"echo hi", "cat"}) {
		t.Errorf("%q", c)
	}
}

func TestSnippetsOfTheDocumentationWork(t *testing.T) {
	var all []snippet
	for _, file := range documents(t) {
		b, err := os.ReadFile(filepath.Join(root(t), file))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, snippets(file, string(b))...)
	}
	if len(all) == 0 {
		t.Skip("no document has a snippet yet")
	}
	weft := buildWeft(t)
	targets := makeTargets(t)
	for _, s := range all {
		if s.run {
			s.execute(t, filepath.Dir(weft))
			continue
		}
		for _, c := range s.commands() {
			s.check(t, c, weft, targets)
		}
	}
}

func buildWeft(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "weft")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", bin, "./cmd/weft")
	cmd.Dir, cmd.Env = root(t), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build weft: %v\n%s", err, out)
	}
	return bin
}

func makeTargets(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root(t), "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range regexp.MustCompile(`(?m)^([a-z][a-z-]*):`).FindAllSubmatch(b, -1) {
		out = append(out, string(m[1]))
	}
	return out
}

func (s snippet) execute(t *testing.T, path string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), snippetTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", strings.Join(s.lines, "\n"))
	cmd.Dir = root(t)
	cmd.Env = append(os.Environ(), "PATH="+path+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s:%d: %v\n%s", s.file, s.line, err, out)
	}
}

// check holds one command of a snippet to what exists.
func (s snippet) check(t *testing.T, command, weft string, targets []string) {
	t.Helper()
	words := strings.Fields(command)
	for len(words) > 0 && regexp.MustCompile(`^[A-Z_]+=`).MatchString(words[0]) { // KEEP=1 make demo
		words = words[1:]
	}
	if len(words) == 0 {
		return
	}
	switch filepath.Base(words[0]) {
	case "make":
		for _, w := range words[1:] {
			if !strings.ContainsAny(w, "=-$") && !slices.Contains(targets, w) {
				t.Errorf("%s:%d: there is no target %q (%s)", s.file, s.line, w, command)
			}
		}
	case "weft":
		if why := unknownToWeft(t, weft, words[1:]); why != "" {
			t.Errorf("%s:%d: %s: %s", s.file, s.line, command, why)
		}
	default:
		for _, e := range runElsewhere {
			if strings.HasPrefix(command, e.begins) {
				if _, err := os.Stat(filepath.Join(root(t), e.where)); err != nil {
					t.Errorf("%s:%d: %q is said to be run in %s: %v", s.file, s.line, command, e.where, err)
				}
				return
			}
		}
		t.Errorf("%s:%d: %q is run nowhere: mark its block with <!-- run -->, or name in docs_test.go the place that runs it", s.file, s.line, command)
	}
}

// unknownToWeft asks the program's help for the subcommand and each flag.
func unknownToWeft(t *testing.T, weft string, words []string) string {
	t.Helper()
	var path, flags []string
	for _, w := range words {
		switch {
		case w == "--help" || w == "-h" || w == "--version":
		case strings.HasPrefix(w, "-"):
			name, _, _ := strings.Cut(w, "=")
			flags = append(flags, name)
		case len(flags) == 0 && len(path) < 2 && regexp.MustCompile(`^[a-z]+$`).MatchString(w):
			path = append(path, w)
		}
	}
	for n := len(path); n >= 0; n-- { // the second word may be an argument
		help, err := exec.Command(weft, append(slices.Clone(path[:n]), "--help")...).CombinedOutput()
		if err != nil || n == 0 && len(path) > 0 {
			continue
		}
		for _, f := range flags {
			if !regexp.MustCompile(regexp.QuoteMeta(f) + `([^a-z-]|$)`).Match(help) {
				return "its help does not know " + f
			}
		}
		if bytes.Contains(help, []byte("No help topic")) {
			continue
		}
		return ""
	}
	return "there is no such command"
}
