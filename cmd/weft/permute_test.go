package main

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
)

func tree() *cli.App {
	a := &app{stdout: io.Discard, stderr: io.Discard}
	t := &cli.App{Name: "weft", Flags: globalFlags(), Commands: a.commands()}
	prepare(t.Commands, nil)
	return t
}

func TestPermute(t *testing.T) {
	for line, want := range map[string]string{
		"ping beta -c 3":                        "weft ping --c=3 -- beta",
		"ping -c3 beta":                         "weft ping --c=3 -- beta",
		"ping beta --count=3 --json":            "weft ping --count=3 --json -- beta",
		"peer show beta --json":                 "weft peer show --json -- beta",
		"peer show --socket /s beta":            "weft --socket=/s peer show -- beta",
		"--socket /s peer --state /x show beta": "weft --socket=/s --state=/x peer show -- beta",
		"join - --name n":                       "weft join --name=n -- -",
		"join -- --looks-like-a-flag":           "weft join -- --looks-like-a-flag",
		"up --join -":                           "weft up --join=- --",
		"attach help":                           "weft attach -- help",
		"attach status --name status":           "weft attach --name=status -- status",
		"up --name=a=b":                         "weft up --name=a=b --",
		"up --init=false":                       "weft up --init=false --",
	} {
		got, err := permute(tree(), append([]string{"weft"}, strings.Fields(line)...))
		if err != nil || strings.Join(got.argv, " ") != want {
			t.Errorf("%s: got %q, %v", line, strings.Join(got.argv, " "), err)
		}
	}
}

// FuzzPermute checks that no word of a command line gets lost: cli's own parser must see each argument and each flag.
func FuzzPermute(f *testing.F) {
	for _, s := range []string{
		"", "ping beta -c 3", "--socket=/s status --json", "-h", "token create --uses -3", "attach -- --x", "-", "--",
		"up --init --init", "ping -c", "- - -", "status --=", "help help", "up -=x",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		words := strings.Fields(text)
		line, err := permute(tree(), append([]string{"weft"}, words...))
		if err != nil {
			if e := control.Explain(err); e.Code != control.Usage || e.Message == "" {
				t.Fatalf("refused with %+v", e)
			}
			return
		}
		if line.help {
			return
		}
		end := slices.Index(line.argv, "--")
		if end < 0 {
			t.Fatalf("%q: nothing separates flags from arguments", line.argv)
		}
		for _, w := range line.argv[1:end] {
			if !strings.HasPrefix(w, "--") && findCommand(line.path, w) == nil {
				t.Fatalf("%q: %q stands among the flags", line.argv, w)
			}
		}
		count := len(line.argv) - 2
		for _, w := range line.argv[1:end] {
			if name, _, has := strings.Cut(w, "="); has && slices.Contains(words, name) || has && slices.Contains(words, name[1:]) {
				count++ // two words became one
			}
		}
		if slices.Contains(words, "--") {
			count++
		}
		if count < len(words) {
			t.Fatalf("%q became %q", words, line.argv)
		}
	})
}
