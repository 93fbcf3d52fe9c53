package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
)

func (a *app) completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Category:  groupLook,
		Usage:     "print what a shell needs to complete commands and options",
		ArgsUsage: "bash|zsh|fish",
		Description: examples(
			"weft completion bash > /etc/bash_completion.d/weft",
			"source <(weft completion zsh)",
			"weft completion fish > ~/.config/fish/completions/weft.fish"),
		Action: a.act(1, 1, func(c *cli.Context) error {
			write, ok := map[string]func(io.Writer, *cli.App){
				"bash": writeBash, "zsh": writeZsh, "fish": writeFish,
			}[c.Args().First()]
			if !ok {
				return &control.Error{
					Code: control.Usage, Message: fmt.Sprintf("there is no completion for %q", c.Args().First()),
					Hint: "There is one for bash, zsh and fish",
				}
			}
			write(a.stdout, a.tree())
			return nil
		}),
	}
}

// place is a command line up to where one word more is to be completed.
type place struct {
	path     string // commands, separated by spaces; empty: none yet
	commands []*cli.Command
	flags    []cli.Flag
}

// word is the path as the scripts keep it: a space before each command.
func (p place) word() string {
	if p.path == "" {
		return ""
	}
	return " " + p.path
}

// places lists them all, outermost first. Options of every command may stand anywhere.
func places(tree *cli.App) []place {
	all := []place{{commands: shownCommands(tree.Commands), flags: tree.Flags}}
	var below func(path string, commands []*cli.Command)
	below = func(path string, commands []*cli.Command) {
		for _, c := range commands {
			p := place{strings.TrimSpace(path + " " + c.Name), shownCommands(c.Subcommands), slices.Concat(c.Flags, tree.Flags)}
			all = append(all, p)
			below(p.path, p.commands)
		}
	}
	below("", all[0].commands)
	return all
}

func shownCommands(commands []*cli.Command) (out []*cli.Command) {
	for _, c := range commands {
		if !c.Hidden {
			out = append(out, c)
		}
	}
	return out
}

// shownFlags are the flags as they are typed, with a word each on what they do, and whether a value follows.
func (p place) shownFlags() (out []shownFlag) {
	for _, f := range p.flags {
		d, ok := f.(cli.DocGenerationFlag)
		if !ok {
			continue
		}
		text, arg := d.GetUsage(), ""
		if _, rest, ok := strings.Cut(text, "`"); ok {
			arg, text, _ = strings.Cut(rest, "`")
		} else if d.TakesValue() {
			arg = "VALUE"
		}
		for _, n := range f.Names() {
			out = append(out, shownFlag{shown(n), strings.TrimSpace(text), arg})
		}
	}
	return out
}

type shownFlag struct {
	name, text string
	arg        string // empty: it takes none
}

// writeBash offers names only: bash shows no descriptions.
func writeBash(w io.Writer, tree *cli.App) {
	fmt.Fprint(w, `# bash completion of weft: the commands so far decide what may follow.
_weft() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} at='' word i
	case $prev in
	`+strings.Join(valueFlags(tree), "|")+`)
		COMPREPLY=($(compgen -f -- "$cur"))
		return
		;;
	esac
	for ((i = 1; i < COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		case "$at $word" in
`)
	for _, p := range places(tree)[1:] {
		fmt.Fprintf(w, "\t\t' %s') at=' %s' ;;\n", p.path, p.path)
	}
	fmt.Fprint(w, "\t\tesac\n\tdone\n\tcase $at in\n")
	for _, p := range places(tree) {
		var words []string
		for _, c := range p.commands {
			words = append(words, c.Name)
		}
		for _, f := range p.shownFlags() {
			words = append(words, f.name)
		}
		fmt.Fprintf(w, "\t'%s') COMPREPLY=($(compgen -W '%s' -- \"$cur\")) ;;\n", p.word(), strings.Join(words, " "))
	}
	fmt.Fprint(w, "\tesac\n\t[ ${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- \"$cur\"))\n}\ncomplete -F _weft weft\n")
}

// valueFlags lists the flags behind which a value stands.
func valueFlags(tree *cli.App) (out []string) {
	seen := map[string]bool{}
	for _, p := range places(tree) {
		for _, f := range p.shownFlags() {
			if f.arg != "" && !seen[f.name] {
				seen[f.name] = true
				out = append(out, f.name)
			}
		}
	}
	return out
}

func writeZsh(w io.Writer, tree *cli.App) {
	fmt.Fprint(w, `#compdef weft
# zsh completion of weft: the commands so far decide what may follow.
_weft() {
	local at='' word
	local -a commands flags
	for word in ${words[2,CURRENT-1]}; do
		case "$at $word" in
`)
	for _, p := range places(tree)[1:] {
		fmt.Fprintf(w, "\t\t' %s') at=' %s' ;;\n", p.path, p.path)
	}
	fmt.Fprint(w, "\t\tesac\n\tdone\n\tcase $at in\n")
	for _, p := range places(tree) {
		fmt.Fprintf(w, "\t'%s')\n\t\tcommands=(", p.word())
		for _, c := range p.commands {
			fmt.Fprintf(w, "\n\t\t\t%s", quoteShell(c.Name+":"+c.Usage))
		}
		fmt.Fprint(w, ")\n\t\tflags=(")
		for _, f := range p.shownFlags() {
			fmt.Fprintf(w, "\n\t\t\t%s", quoteShell(f.name+":"+strings.ReplaceAll(f.text, ":", "\\:")))
		}
		fmt.Fprint(w, ")\n\t\t;;\n")
	}
	fmt.Fprint(w, `	esac
	if [[ $PREFIX == -* ]]; then
		_describe option flags
	elif (( $#commands )); then
		_describe command commands
	else
		_files
	fi
}
if [[ $funcstack[1] == _weft ]]; then _weft "$@"; else compdef _weft weft; fi
`)
}

func writeFish(w io.Writer, tree *cli.App) {
	fmt.Fprint(w, `# fish completion of weft: the commands so far decide what may follow.
function __weft_at --description 'the commands on the line are these, and no others'
	set -l found
	for word in (commandline -opc)[2..]
		contains -- "$found $word" `+fishPaths(tree)+`; and set found "$found $word"
	end
	test "$found" = "$argv[1]"
end
complete -c weft -f
`)
	for _, p := range places(tree) {
		at := fmt.Sprintf(`-n "__weft_at '%s'"`, p.word())
		for _, c := range p.commands {
			fmt.Fprintf(w, "complete -c weft %s -a %s -d %s\n", at, c.Name, quoteFish(c.Usage))
		}
		for _, f := range p.shownFlags() {
			kind := "-l"
			if len(strings.TrimLeft(f.name, "-")) == 1 {
				kind = "-s"
			}
			value := ""
			if f.arg != "" {
				value = " -r -F"
			}
			fmt.Fprintf(w, "complete -c weft %s %s %s%s -d %s\n", at, kind, strings.TrimLeft(f.name, "-"), value, quoteFish(f.text))
		}
	}
}

func fishPaths(tree *cli.App) string {
	var out []string
	for _, p := range places(tree)[1:] {
		out = append(out, "' "+p.path+"'")
	}
	return strings.Join(out, " ")
}

func quoteShell(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func quoteFish(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(s) + "'"
}
