package main

import (
	"context"
	"errors"
	"time"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
)

// downTimeout is for the daemon to stop everything that it runs.
const downTimeout = 30 * time.Second

func (a *app) downCommand() *cli.Command {
	return &cli.Command{
		Name:        "down",
		Category:    groupCluster,
		Usage:       "stop the daemon and the data plane; keep membership and addresses",
		Description: "weft down",
		Action:      a.ask(0, 0, a.down),
	}
}

func (a *app) down(c *cli.Context, d *control.Client) error {
	err := d.Down(c.Context)
	if errors.Is(err, control.Unreachable) {
		// The data plane outlives a daemon that died.
		cfg, cfgErr := a.daemonConfig(c)
		if cfgErr != nil {
			return cfgErr
		}
		cfg.Join = ""
		if cfg, cfgErr = cfg.Complete(); cfgErr != nil {
			return usage(cfgErr.Error())
		}
		stopped, downErr := a.entries.down(c.Context, cfg)
		if downErr != nil {
			return downErr
		}
		if stopped {
			a.say("The daemon was not running. Stopped the data plane that it had left.")
			return nil
		}
	}
	if err != nil {
		return err
	}
	return a.gone(c, d, "Stopped. Pods keep their addresses; weft up goes on from here.")
}

func (a *app) gone(c *cli.Context, d *control.Client, words string) error {
	ctx, cancel := context.WithTimeout(c.Context, downTimeout)
	defer cancel()
	if err := d.Gone(ctx); err != nil {
		return err
	}
	a.say("%s", words)
	return nil
}
