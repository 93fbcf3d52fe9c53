package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"weft/prog/control"
	"weft/prog/weftd"
)

// app is the command line with everything that it touches of the world outside, so that a test can be the world.
type app struct {
	stdin  io.Reader
	stdout io.Writer // results
	stderr io.Writer // words

	lookup   func(key string) (string, bool)  // an environment variable
	terminal func() (columns int, isTTY bool) // what stdout is
	netns    string                           // folder of named network namespaces
	capable  func() error                     // why this process may not administer the network
	entries
}

// entries are the programs behind the commands that are no questions to a daemon.
type entries struct {
	// up runs the daemon until ctx ends.
	up func(ctx context.Context, cfg weftd.Config) error
	// init makes a cluster in the state directory while no daemon runs.
	init func(ctx context.Context, cfg weftd.Config, r control.InitRequest) (control.InitReply, error)
	// down stops the data plane that a daemon left behind; false: there was none.
	down func(ctx context.Context, cfg weftd.Config) (bool, error)
	// doctor asks the machine while no daemon runs.
	doctor func(ctx context.Context, cfg weftd.Config) (control.Doctor, error)
	// guard refuses packets of the pools while no daemon runs.
	guard func(ctx context.Context, cfg weftd.Config) (weftd.Guarded, error)
	// wire runs the data plane.
	wire func(ctx context.Context, socket, build string) error
	// beside starts a data plane that will follow the one that runs.
	beside func(socket string) error
}

// realApp is on the real world.
func realApp() *app {
	return &app{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, lookup: os.LookupEnv, netns: "/run/netns",
		capable: capable, entries: programs(), terminal: func() (int, bool) {
			columns, _, err := term.GetSize(int(os.Stdout.Fd()))
			return columns, err == nil
		},
	}
}

// The groups of the overview.
const (
	groupCluster = "Make and join a cluster"
	groupPods    = "Connect pods"
	groupLook    = "Look"
)

// commands is the whole tree, in the order of the overview.
func (a *app) commands() []*cli.Command {
	return []*cli.Command{
		a.initCommand(), a.joinCommand(), a.upCommand(), a.downCommand(), a.leaveCommand(), a.tokenCommand(),
		a.issuerCommand(),
		a.attachCommand(), a.detachCommand(), a.ipCommand(), a.clientCommand(),
		a.statusCommand(), a.peerCommand(), a.pingCommand(), a.doctorCommand(), a.graphCommand(), a.reportCommand(),
		a.configCommand(), a.versionCommand(), a.completionCommand(),
		a.wireCommand(), a.guardCommand(), a.manualCommand(),
	}
}

// run executes one command line and returns the exit code.
func (a *app) run(ctx context.Context, argv []string) int {
	tree := a.tree()
	line, err := permute(tree, argv)
	switch {
	case err != nil:
	case line.help:
		writeHelp(a.stdout, tree, line.path)
		return control.ExitOK
	default:
		err = tree.RunContext(ctx, line.argv)
	}
	if err == nil {
		return control.ExitOK
	}
	if shown := new(shownError); !errors.As(err, &shown) {
		fmt.Fprintln(a.stderr, "weft: "+sentence(err, line.path))
	}
	return control.ExitCode(err)
}

// tree is the command line as cli knows it.
func (a *app) tree() *cli.App {
	tree := &cli.App{
		Name:           "weft",
		Usage:          "join machines anywhere into one encrypted container network",
		Flags:          globalFlags(),
		Commands:       a.commands(),
		HideHelp:       true, // ours knows groups and examples
		HideVersion:    true,
		Reader:         a.stdin,
		Writer:         a.stdout,
		ErrWriter:      a.stderr,
		ExitErrHandler: func(*cli.Context, error) {}, // exiting is main's
		OnUsageError:   func(_ *cli.Context, err error, _ bool) error { return usage(err.Error()) },
	}
	prepare(tree.Commands, tree.OnUsageError)
	return tree
}

// prepare sets what cli does not inherit from a command to the commands below it.
func prepare(commands []*cli.Command, onUsageError cli.OnUsageErrorFunc) {
	for _, c := range commands {
		c.HideHelp = true
		c.OnUsageError = onUsageError
		prepare(c.Subcommands, onUsageError)
	}
}

// ask makes the action of a command that is questions to the daemon. It takes from least to most arguments.
func (a *app) ask(least, most int, do func(c *cli.Context, d *control.Client) error) cli.ActionFunc {
	return a.act(least, most, func(c *cli.Context) error {
		cfg, err := a.clientConfig(c)
		if err != nil {
			return err
		}
		return do(c, control.NewClient(cfg.Socket))
	})
}

// act makes the action of a command that takes from least to most arguments.
func (a *app) act(least, most int, do cli.ActionFunc) cli.ActionFunc {
	return func(c *cli.Context) error {
		switch n := c.NArg(); {
		case n < least:
			return usage(fmt.Sprintf("%s needs %s", c.Command.HelpName, c.Command.ArgsUsage), tryHelp(c))
		case n > most && most == 0:
			return usage(fmt.Sprintf("%s takes no argument, got %q", c.Command.HelpName, c.Args().First()), tryHelp(c))
		case n > most:
			return usage(fmt.Sprintf("%s takes only %s, got also %q", c.Command.HelpName, c.Command.ArgsUsage,
				c.Args().Get(most)), tryHelp(c))
		case slices.Contains(c.Args().Slice(), ""):
			return usage(fmt.Sprintf("%s needs %s, and it is empty", c.Command.HelpName, c.Command.ArgsUsage), tryHelp(c))
		}
		return do(c)
	}
}

// say writes words for the person at the terminal.
func (a *app) say(format string, args ...any) { fmt.Fprintf(a.stderr, format+"\n", args...) }

func tryHelp(c *cli.Context) string { return "Try: " + c.Command.HelpName + " --help" }

func jsonFlag() cli.Flag { return &cli.BoolFlag{Name: "json", Usage: "print JSON"} }

// examples joins lines for a command's Description.
func examples(lines ...string) string { return strings.Join(lines, "\n") }
