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
	if err == nil || missing {
		if cfg, err = cfg.Complete(); err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
	}
	if err != nil {
		return &control.Error{Code: control.Failed, Message: err.Error()}
	}
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
