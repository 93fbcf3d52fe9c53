package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
	"weft/prog/weftd"
)

// manualCommand is for packaging, so it is not listed. What is printed is made of the same words as the help.
func (a *app) manualCommand() *cli.Command {
	return &cli.Command{
		Name:        "manual",
		Hidden:      true,
		Usage:       "print a manual page",
		ArgsUsage:   "weft.1|weft.yaml.5",
		Description: "weft manual weft.1 | man -l -",
		Action: a.act(1, 1, func(c *cli.Context) error {
			write, ok := map[string]func(io.Writer, *cli.App){
				"weft.1": writeManual, "weft.yaml.5": writeFileManual,
			}[c.Args().First()]
			if !ok {
				return &control.Error{
					Code: control.Usage, Message: fmt.Sprintf("there is no page %q", c.Args().First()),
					Hint: "There is weft.1, and weft.yaml.5",
				}
			}
			write(a.stdout, a.tree())
			return nil
		}),
	}
}

// roff makes text safe: a backslash is written out, hyphens can be searched for, and no line is taken for a request.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\u2026", "...").Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

func writeManual(w io.Writer, tree *cli.App) {
	fmt.Fprintf(w, ".TH WEFT 1 \"\" \"weft\" \"weft\"\n.SH NAME\nweft \\- %s\n", roff(tree.Usage))
	fmt.Fprint(w, ".SH SYNOPSIS\n.B weft\n.I COMMAND\n[\n.I ARGUMENT\n... ] [\n.I OPTION\n... ]\n")
	fmt.Fprint(w, ".SH DESCRIPTION\nResults go to stdout, words to stderr. Options may stand before or after arguments. A flag wins over\n"+
		"the variable, the variable over the file.\n")
	group := ""
	for _, p := range places(tree)[1:] {
		c := find(tree.Commands, p.path)
		if c.Category != "" && c.Category != group {
			group = c.Category
			fmt.Fprintf(w, ".SH %s\n", strings.ToUpper(roff(group)))
		}
		line := "weft " + p.path
		if c.ArgsUsage != "" {
			line += " " + c.ArgsUsage
		}
		fmt.Fprintf(w, ".SS \"%s\"\n%s.\n", strings.ReplaceAll(roff(line), `"`, `\(dq`), roff(c.Usage))
		writeFlagList(w, place{flags: c.Flags}.shownFlags())
		if c.Description != "" {
			fmt.Fprint(w, ".PP\n.nf\n.RS 4\n")
			for l := range strings.SplitSeq(c.Description, "\n") {
				fmt.Fprintln(w, roff(l))
			}
			fmt.Fprint(w, ".RE\n.fi\n")
		}
	}
	fmt.Fprint(w, ".SH OPTIONS OF EVERY COMMAND\n")
	writeFlagList(w, place{flags: tree.Flags}.shownFlags())
	fmt.Fprint(w, ".SH EXIT STATUS\n0 done, 1 failed, 2 a mistake in the command line, 3 no daemon answers.\n")
	fmt.Fprintf(w, ".SH FILES\n.TP\n.I %s\nthe configuration, if there is one; see\n.BR weft.yaml (5).\n", roff(weftd.DefaultConfig))
	fmt.Fprintf(w, ".TP\n.I %s\nkeys and books of this node.\n.TP\n.I %s\nwhere the daemon is asked.\n", roff(weftd.DefaultState), roff(weftd.DefaultSocket))
	fmt.Fprint(w, ".SH SEE ALSO\n.BR weft.yaml (5),\n.BR ip-netns (8)\n")
}

func writeFlagList(w io.Writer, flags []shownFlag) {
	for _, f := range flags {
		name := `\fB` + roff(f.name) + `\fR`
		if f.arg != "" {
			name += ` \fI` + roff(f.arg) + `\fR`
		}
		fmt.Fprintf(w, ".TP\n%s\n%s\n", name, roff(f.text))
	}
}

// find is the command at the end of a path that exists.
func find(commands []*cli.Command, path string) *cli.Command {
	var c *cli.Command
	for name := range strings.FieldsSeq(path) {
		c = findCommand(commands, name)
		commands = c.Subcommands
	}
	return c
}

func writeFileManual(w io.Writer, _ *cli.App) {
	fmt.Fprint(w, ".TH WEFT.YAML 5 \"\" \"weft\" \"weft\"\n.SH NAME\nweft.yaml \\- what the daemon of weft is told\n.SH DESCRIPTION\n"+
		"Each line is a key and a value. Lists are YAML lists, or separated by commas. A key that does not exist is an error.\n"+
		"Each is a flag of\n.B weft up\ntoo.\n.B weft config check\nreads the file as the daemon would.\n.SH KEYS\n")
	for _, s := range weftd.Settings() {
		value := s.Arg
		if value == "" {
			value = "true or false"
		}
		fmt.Fprintf(w, ".TP\n\\fB%s:\\fR \\fI%s\\fR\n%s", roff(s.Key), roff(value), roff(s.Help))
		if s.Env != "" {
			fmt.Fprintf(w, " (variable %s)", roff(s.Env))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprint(w, ".SH SEE ALSO\n.BR weft (1)\n")
}
