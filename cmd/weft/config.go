package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
	"weft/prog/weftd"
)

func (a *app) configCommand() *cli.Command {
	return &cli.Command{
		Name:     "config",
		Category: groupLook,
		Usage:    "the configuration file",
		Subcommands: []*cli.Command{{
			Name:      "check",
			Usage:     "read it as the daemon would, and print what is then in force",
			ArgsUsage: "[FILE]",
			Flags:     []cli.Flag{jsonFlag()},
			Description: examples(
				"weft config check",
				"weft config check ./weft.yaml"),
			Action: a.act(0, 1, a.configCheck),
		}},
	}
}

func (a *app) configCheck(c *cli.Context) error {
	name, asked := a.configFile(c)
	if c.NArg() == 1 {
		name, asked = c.Args().First(), true
	}
	var cfg weftd.Config
	err := cfg.Load(name)
	missing := errors.Is(err, fs.ErrNotExist) && !asked
	switch {
	case missing:
		err = nil
	case err == nil:
		err = cfg.CheckFile(name)
	}
	complete, invalid := cfg.Complete()
	if _, unreadable := errors.AsType[weftd.Problems](err); invalid != nil && (err == nil || unreadable) {
		err = errors.Join(err, fmt.Errorf("%s: %w", name, invalid))
	}
	if err != nil {
		return a.badConfig(err)
	}
	cfg = complete
	inForce := map[string]string{}
	for _, s := range weftd.Settings() {
		if v := s.Get(cfg); v != "" {
			inForce[s.Key] = v
		}
	}
	if c.Bool("json") {
		return a.printJSON(struct {
			Version  int               `json:"version"`
			File     string            `json:"file"`
			Settings map[string]string `json:"settings"`
		}{control.Version, name, inForce})
	}
	if missing {
		a.say("There is no %s, so the defaults hold.", name)
	} else {
		a.say("%s is good.", name)
	}
	for _, s := range weftd.Settings() {
		if v := inForce[s.Key]; v != "" {
			fmt.Fprintf(a.stdout, "%s: %s\n", s.Key, v)
		}
	}
	return nil
}

// badConfig shows every problem on a line of its own, the last one as the error.
func (a *app) badConfig(err error) error {
	all := leaves(err)
	for _, p := range all[:len(all)-1] {
		a.say("weft: %v", p)
	}
	return &control.Error{Code: control.Failed, Message: all[len(all)-1].Error()}
}

// leaves lists the problems in a joined error.
func leaves(err error) []error {
	many, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range many.Unwrap() {
		all = append(all, leaves(e)...)
	}
	return all
}
