package main

import (
	"github.com/urfave/cli/v2"

	"weft/prog/control"
)

func (a *app) leaveCommand() *cli.Command {
	return &cli.Command{
		Name:     "leave",
		Category: groupCluster,
		Usage:    "hand back this machine's addresses, leave the cluster, stop",
		Flags: []cli.Flag{&cli.BoolFlag{
			Name:  "purge",
			Usage: "remove state, devices and rules too: the machine as it was before weft",
		}},
		Description: examples("weft leave", "weft leave --purge"),
		Action:      a.ask(0, 0, a.leave),
	}
}

func (a *app) leave(c *cli.Context, d *control.Client) error {
	reply, err := d.Leave(c.Context, control.LeaveRequest{Purge: c.Bool("purge")})
	if err != nil {
		return err
	}
	for _, n := range reply.Notes {
		a.say("%s", n)
	}
	return a.gone(c, d, "Left the cluster.")
}
