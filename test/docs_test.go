package test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// The documentation is typed by a test, word for word. The comment on the line before a block of sh says where:
//
//	<!-- run -->             in a shell in the root of the repository, with weft in the path: what needs neither root nor a cluster
//	<!-- on n1 -->           on machine n1 of the page's own lab of three; several machines: <!-- on n1 n2 -->
//	<!-- on n1, fails -->    the same, and it must fail
//	<!-- run by .ci/run -->  by that script, or with that page: the same lines stand there
//
// A page is a story: its blocks are typed from top to bottom, and between them the machines have time to find each other.
// Two more comments belong to it:
//
//	<!-- ^C on n1 -->        the daemon in the foreground of n1 is interrupted
//	<!-- prints -->          before a block of text: the last block of sh printed these lines, in this order, among others
//
// What differs from run to run is not compared: a word with a digit in it, and one of 20 letters or more, stands for any
// such word. The machines' side of it is in typed_linux_test.go.
type block struct {
	file  string
	line  int    // of its first line
	lang  string // sh, text, …; "^C" for that comment
	mark  string // the comment before it
	lines []string
}

const snippetTimeout = 10 * time.Minute

// documents lists what is held to these rules.
func documents(t *testing.T) []string {
	t.Helper()
	files := []string{"README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"}
	err := filepath.WalkDir(filepath.Join(root(t), "site"), func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".md") {
			var rel string
			rel, err = filepath.Rel(root(t), path)
			files = append(files, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root(t), file))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var (
	comment   = regexp.MustCompile(`^<!-- (.*) -->$`)
	interrupt = regexp.MustCompile(`^\^C on (n[123])$`)
	typedOn   = regexp.MustCompile(`^on (n[123](?: n[123])*)(, fails)?$`)
	runBy     = regexp.MustCompile(`^run by (\S+)$`)
)

// blocks finds the fenced blocks of a page, with the comment before each.
func blocks(file, text string) []block {
	var all []block
	var open *block
	mark := ""
	for i, line := range strings.Split(text, "\n") {
		trimmed := strings.TrimSpace(line)
		lang, fence := strings.CutPrefix(trimmed, "```")
		switch {
		case open != nil && fence:
			all = append(all, *open)
			open, mark = nil, ""
		case open != nil:
			open.lines = append(open.lines, line)
		case fence:
			open = &block{file: file, line: i + 2, lang: lang, mark: mark}
		case trimmed != "":
			mark = ""
			if m := comment.FindStringSubmatch(trimmed); m != nil {
				mark = m[1]
				if interrupt.MatchString(mark) {
					all = append(all, block{file: file, line: i + 1, lang: "^C", mark: mark})
				}
			}
		}
	}
	return all
}

// where is the block's place, for the words of a failure.
func (b block) where() string { return fmt.Sprintf("%s:%d", b.file, b.line) }

// text is the block as it stands.
func (b block) text() string { return strings.Join(b.lines, "\n") }

// commands are the lines that somebody would type: no comments, continued lines joined.
func (b block) commands() []string {
	var out []string
	for line := range strings.SplitSeq(strings.ReplaceAll(b.text(), "\\\n", " "), "\n") {
		if line = strings.TrimSpace(trailingComment.ReplaceAllString(line, "")); line != "" {
			out = append(out, line)
		}
	}
	return out
}

var trailingComment = regexp.MustCompile(`(^|\s)#\s.*$`)

// onMachines reports whether a page is a story.
func onMachines(page []block) bool {
	return slices.ContainsFunc(page, func(b block) bool { return typedOn.MatchString(b.mark) })
}

func TestBlocksAreFoundWithTheirComments(t *testing.T) {
	text := "# Title\n\n<!-- on n1 n2 -->\n```sh\nsudo weft up --init \\\n  --name a   # here\n```\nwords\n\n<!-- run -->\n\n" +
		"```sh\necho hi | cat\n```\n<!-- ^C on n1 -->\n```text\nnot this\n```\n"
	got := blocks("x.md", text)
	var short []string
	for _, b := range got {
		short = append(short, fmt.Sprintf("%d %s %q %q", b.line, b.lang, b.mark, b.commands()))
	}
	want := []string{
		`5 sh "on n1 n2" ["sudo weft up --init    --name a"]`, `13 sh "run" ["echo hi | cat"]`,
		`15 ^C "^C on n1" []`, `17 text "^C on n1" ["not this"]`,
	}
	if !slices.Equal(short, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(short, "\n"), strings.Join(want, "\n"))
	}
}

func TestEveryBlockOfShellIsRunSomewhere(t *testing.T) {
	for _, file := range documents(t) {
		for _, b := range blocks(file, read(t, file)) {
			switch {
			case b.lang == "":
				t.Errorf("%s: a block needs a language: sh is typed by a test, text is not", b.where())
			case slices.Contains([]string{"bash", "shell", "console"}, b.lang):
				t.Errorf("%s: call it sh, so that it is typed by a test", b.where())
			case b.lang != "sh" || b.mark == "run" || typedOn.MatchString(b.mark):
			case runBy.MatchString(b.mark):
				script := read(t, runBy.FindStringSubmatch(b.mark)[1])
				for _, c := range b.commands() {
					if !regexp.MustCompile(`(?m)^(exec )?` + regexp.QuoteMeta(c) + `$`).MatchString(script) {
						t.Errorf("%s: %q is no line of %s", b.where(), c, b.mark)
					}
				}
			default:
				t.Errorf("%s: a block of sh is typed by a test, and the comment before it says where: <!-- run --> or "+
					"<!-- on n1 -->; it says %q", b.where(), b.mark)
			}
		}
	}
}

func TestQuickBlocksWork(t *testing.T) {
	for _, file := range documents(t) {
		for _, b := range blocks(file, read(t, file)) {
			if b.lang != "sh" || b.mark != "run" {
				continue
			}
			ctx, cancel := context.WithTimeout(t.Context(), snippetTimeout)
			cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", b.text())
			cmd.Dir = root(t)
			cmd.Env = append(cleanEnvironment(), "PATH="+filepath.Dir(weft(t))+":"+os.Getenv("PATH"))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", b.where(), err, out)
			}
			cancel()
		}
	}
}

// cleanEnvironment is this process's without what would make a typed line mean something else.
func cleanEnvironment() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "WEFT_") || strings.HasPrefix(kv, "MAKE") || strings.HasPrefix(kv, "MFLAGS=") || strings.HasPrefix(kv, "PATH=")
	})
}

// built is the program, built once for all tests of this package.
var built struct {
	sync.Once
	dir string
	err error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// weft is the path of the program.
func weft(t *testing.T) string {
	t.Helper()
	built.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "weft-docs-"); built.err != nil { //nolint:usetesting // outlives this test
			return
		}
		cmd := exec.Command("go", "build", "-trimpath", "-tags=nethttpomithttp2,urfave_cli_no_docs", "-buildvcs=false", "-ldflags=-s -w", "-o", built.dir+"/", "./cmd/weft", "./cmd/weft-cni")
		cmd.Dir, cmd.Env = root(t), append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build weft: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "weft")
}

// printed compares what a page shows with what was printed: the lines in their order, other lines between them.
func printed(shown []string, got string) error {
	rest := strings.Split(got, "\n")
	for _, line := range shown {
		if strings.TrimSpace(line) == "" {
			continue
		}
		at := slices.IndexFunc(rest, func(r string) bool { return sameLine(line, r) })
		if at < 0 {
			return fmt.Errorf("it does not print %q", line)
		}
		rest = rest[at+1:]
	}
	return nil
}

// sameLine compares word by word; a shown word that is another in every run stands for any.
func sameLine(shown, got string) bool {
	return slices.EqualFunc(strings.Fields(shown), strings.Fields(got), func(s, g string) bool {
		return s == g || strings.ContainsFunc(s, unicode.IsDigit) || utf8.RuneCountInString(s) >= 20
	})
}

func TestPrintedLinesAreComparedByWhatLasts(t *testing.T) {
	got := "Node  n1  ready\n  id  ip464447anjx6257xaj5t4visi\n  up  6s\n"
	if err := printed([]string{"Node n3 ready", "id aaaaaaaaaaaaaaaaaaaaaaaaaa"}, got); err != nil {
		t.Error(err)
	}
	if printed([]string{"up 5s", "Node n1 ready"}, got) == nil || printed([]string{"Node n1 waiting"}, got) == nil ||
		printed([]string{"Node n1"}, got) == nil {
		t.Error("another order or another word passes")
	}
}

var link = regexp.MustCompile(`\[[^\]]*\]\(([^)\s]+)\)`)

// A link inside the repository leads to a file, and to a heading of it; every page can be reached from the map.
func TestLinksLeadSomewhere(t *testing.T) {
	reached := map[string]bool{}
	for _, file := range documents(t) {
		for i, line := range strings.Split(read(t, file), "\n") {
			for _, m := range link.FindAllStringSubmatch(line, -1) {
				if strings.Contains(m[1], "://") {
					continue
				}
				path, anchor, _ := strings.Cut(m[1], "#")
				target := file
				if path != "" {
					target = filepath.Join(filepath.Dir(file), path)
				}
				st, err := os.Stat(filepath.Join(root(t), target))
				switch {
				case errors.Is(err, fs.ErrNotExist):
					t.Errorf("%s:%d: there is no %s", file, i+1, target)
				case err != nil:
					t.Fatal(err)
				case anchor != "" && !st.IsDir() && !slices.Contains(anchors(read(t, target)), anchor):
					t.Errorf("%s:%d: %s has no heading #%s", file, i+1, target, anchor)
				}
				if file == "site/index.md" || file == "site/adr/index.md" {
					reached[target] = true
				}
			}
		}
	}
	for _, file := range documents(t) {
		if strings.HasPrefix(file, "site/") && file != "site/index.md" && !reached[file] {
			t.Errorf("%s is on no map: name it in site/index.md or site/adr/index.md", file)
		}
	}
}

// anchors are the headings of a page as links name them.
func anchors(text string) []string {
	var all []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		all = append(all, strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, m[1]))
	}
	return all
}

// A decision record has one form, so that one finds the alternatives of a decision without reading all of it.
func TestDecisionsHaveTheirParts(t *testing.T) {
	named := regexp.MustCompile(`^site/adr/(\d{4})-[a-z0-9-]+\.md$`)
	next := 1
	for _, file := range documents(t) {
		if !strings.HasPrefix(file, "site/adr/") || file == "site/adr/index.md" {
			continue
		}
		m := named.FindStringSubmatch(file)
		if m == nil || m[1] != fmt.Sprintf("%04d", next) {
			t.Fatalf("%s: want site/adr/%04d-some-title.md", file, next)
		}
		next++
		text := read(t, file)
		if !strings.HasPrefix(text, "# "+m[1]+" ") {
			t.Errorf("%s does not begin with its number", file)
		}
		var parts []string
		for _, h := range regexp.MustCompile(`(?m)^## (.*)$`).FindAllStringSubmatch(text, -1) {
			parts = append(parts, h[1])
		}
		if want := []string{"Context", "Decision", "Alternatives", "Consequences"}; !slices.Equal(parts, want) {
			t.Errorf("%s has the parts %q, want %q", file, parts, want)
		}
	}
}
