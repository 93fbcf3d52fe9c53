package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
)

// writeHelp explains the command at the end of path, or with an empty path the whole program.
func writeHelp(w io.Writer, tree *cli.App, path []*cli.Command) {
	if len(path) == 0 {
		writeOverview(w, tree)
		return
	}
	c, name := path[len(path)-1], commandName(path)
	fmt.Fprintf(w, "%s: %s\n", name, c.Usage)
	if len(c.Subcommands) > 0 {
		fmt.Fprintf(w, "\nUsage: %s COMMAND\n\n", name)
		writeCommands(w, c.Subcommands)
	} else {
		parts := []string{name}
		if c.ArgsUsage != "" {
			parts = append(parts, c.ArgsUsage)
		}
		if len(c.Flags) > 0 {
			parts = append(parts, "[OPTION]…")
		}
		fmt.Fprintf(w, "\nUsage: %s\n", strings.Join(parts, " "))
	}
	if len(c.Flags) > 0 {
		fmt.Fprint(w, "\nOptions:\n")
		writeFlags(w, c.Flags)
	}
	if c.Description != "" {
		fmt.Fprintf(w, "\nExamples:\n  %s\n", strings.ReplaceAll(c.Description, "\n", "\n  "))
	}
	fmt.Fprint(w, "\nOptions of every command, such as --socket: weft --help\n")
}

func writeOverview(w io.Writer, tree *cli.App) {
	fmt.Fprintf(w, "%s: %s\n\nUsage: weft COMMAND [ARGUMENT]… [OPTION]…\n", tree.Name, tree.Usage)
	var groups []string
	members := map[string][]*cli.Command{}
	for _, c := range tree.Commands {
		if c.Hidden {
			continue
		}
		if members[c.Category] == nil {
			groups = append(groups, c.Category)
		}
		members[c.Category] = append(members[c.Category], c)
	}
	for _, g := range groups {
		fmt.Fprintf(w, "\n%s:\n", g)
		writeCommands(w, members[g])
	}
	fmt.Fprint(w, "\nOptions of every command:\n")
	writeFlags(w, tree.Flags)
	fmt.Fprint(w, "\nA flag wins over the variable, the variable over the file. All about one command: weft COMMAND --help\n")
}

func writeCommands(w io.Writer, commands []*cli.Command) {
	t := tabwriter.NewWriter(w, 12, 0, 2, ' ', 0)
	defer t.Flush()
	for _, c := range commands {
		if !c.Hidden {
			fmt.Fprintf(t, "  %s\t%s\n", c.Name, c.Usage)
		}
	}
}

// writeFlags takes the placeholder of a value from between backquotes in the flag's usage, as cli does.
func writeFlags(w io.Writer, flags []cli.Flag) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		if !ok {
			continue
		}
		var names []string
		for _, n := range f.Names() {
			names = append(names, shown(n))
		}
		left, text := strings.Join(names, ", "), d.GetUsage()
		if _, rest, ok := strings.Cut(text, "`"); ok {
			arg, after, _ := strings.Cut(rest, "`")
			left, text = left+" "+arg, strings.TrimSpace(after)
		} else if d.TakesValue() {
			left += " VALUE"
		}
		if env := d.GetEnvVars(); len(env) > 0 {
			text += " [" + cmp.Or(env...) + "]"
		}
		fmt.Fprintf(t, "  %s\t%s\n", left, text)
	}
}
