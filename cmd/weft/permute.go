package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"weft/prog/weftd"
)

// commandLine is what permute understood.
type commandLine struct {
	argv []string       // program, global flags, command, its flags, "--", arguments: the order that cli needs
	path []*cli.Command // the command, outermost first
	help bool           // wants to be told about path instead
}

// permute brings flags that stand after arguments to where cli looks for them: cli stops at the first argument and
// takes the rest as arguments, silently. On the way it refuses what cli would let pass: a flag given twice, of which
// the first would be lost, and a command that does not exist.
func permute(tree *cli.App, argv []string) (commandLine, error) {
	var (
		line               commandLine
		global, local, pos []string
		seen               = map[string]bool{}
		commands           = tree.Commands
		flags              []cli.Flag // of the command
	)
	name := func() string { return commandName(line.path) }
	args := argv[1:]
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			pos = append(pos, args...)
			args = nil
			continue
		case arg == "-h" || arg == "--help" || arg == "-help":
			line.help = true
			continue
		case len(arg) < 2 || arg[0] != '-': // also "-": standard input
			if len(commands) == 0 || len(pos) > 0 {
				pos = append(pos, arg)
				continue
			}
			if arg == "help" && len(line.path) == 0 {
				line.help = true
				continue
			}
			c := findCommand(commands, arg)
			if c == nil {
				return line, noCommand(name(), arg, commands)
			}
			line.path = append(line.path, c)
			commands, flags = c.Subcommands, c.Flags
			continue
		}
		word, value, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		into, flag := &local, findFlag(flags, word)
		if flag == nil {
			into, flag = &global, findFlag(tree.Flags, word)
		}
		if flag == nil && !hasValue && !strings.HasPrefix(arg, "--") { // -c3
			if short := findFlag(flags, word[:1]); short != nil && takesValue(short) {
				into, flag, word, value, hasValue = &local, short, word[:1], word[1:], true
			}
		}
		if flag == nil {
			return line, noFlag(name(), arg, append(slices.Clone(flags), tree.Flags...))
		}
		key := flag.Names()[0]
		if seen[key] {
			return line, usage(fmt.Sprintf("%s is given twice", shown(word)), "Several values go into one, with commas between")
		}
		seen[key] = true
		if takesValue(flag) && !hasValue {
			if len(args) == 0 || strings.HasPrefix(args[0], "--") {
				return line, usage(fmt.Sprintf("%s needs a value", shown(word)), "Try: "+name()+" --help")
			}
			value, args, hasValue = args[0], args[1:], true
		}
		if hasValue {
			*into = append(*into, "--"+word+"="+value)
		} else {
			*into = append(*into, "--"+word)
		}
	}
	switch {
	case line.help:
		return line, nil
	case len(line.path) == 0 && len(pos) == 0:
		line.help = true // `weft` alone
		return line, nil
	case len(commands) > 0:
		var words []string
		for _, c := range commands {
			if !c.Hidden {
				words = append(words, c.Name)
			}
		}
		return line, usage(name()+" needs one of: "+strings.Join(words, ", "), "Try: "+name()+" --help")
	}
	line.argv = append([]string{argv[0]}, global...)
	for _, c := range line.path {
		line.argv = append(line.argv, c.Name)
	}
	line.argv = append(append(append(line.argv, local...), "--"), pos...)
	return line, nil
}

func commandName(path []*cli.Command) string {
	words := []string{"weft"}
	for _, c := range path {
		words = append(words, c.Name)
	}
	return strings.Join(words, " ")
}

func findCommand(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

func findFlag(flags []cli.Flag, name string) cli.Flag {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func takesValue(f cli.Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return ok && d.TakesValue()
}

// shown is a flag as people write it.
func shown(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

func noCommand(parent, word string, commands []*cli.Command) error {
	var known []string
	for _, c := range commands {
		if !c.Hidden {
			known = append(known, c.Name)
		}
	}
	hint := "Try: " + parent + " --help"
	if near := weftd.Nearest(word, known); near != "" {
		hint = "Did you mean: " + parent + " " + near
	}
	return usage(fmt.Sprintf("there is no command %q", parent+" "+word), hint)
}

func noFlag(command, arg string, flags []cli.Flag) error {
	word, _, _ := strings.Cut(arg, "=") // the value may be a secret
	var known []string
	for _, f := range flags {
		for _, n := range f.Names() {
			known = append(known, shown(n))
		}
	}
	hint := "Try: " + command + " --help"
	if near := weftd.Nearest(word, known); near != "" {
		hint = "Did you mean " + near + "?"
	} else if command == "weft" {
		hint = "Flags of a command stand after its name"
	}
	return usage(fmt.Sprintf("%s has no flag %s", command, word), hint)
}
