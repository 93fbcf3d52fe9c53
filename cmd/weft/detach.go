package main

import (
	"github.com/urfave/cli/v2"

	"weft/prog/control"
)

func (a *app) detachCommand() *cli.Command {
	return &cli.Command{
		Name:        "detach",
		Category:    groupPods,
		Usage:       "take interface and addresses away again",
		ArgsUsage:   "NETNS",
		Description: "weft detach web",
		Action:      a.ask(1, 1, a.detach),
	}
}

func (a *app) detach(c *cli.Context, d *control.Client) error {
	reply, err := d.Detach(c.Context, control.DetachRequest{Netns: a.guessNetns(c.Args().First())})
	if err != nil {
		return err
	}
	if len(reply.Addresses) == 0 {
		a.say("%s was not attached.", c.Args().First())
	}
	return nil
}
