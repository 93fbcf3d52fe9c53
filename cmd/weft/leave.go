package main

import (
	"os"
	"strings"

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
	if err := a.gone(c, d, "Left the cluster."); err != nil || !c.Bool("purge") {
		return err
	}
	return nothingLeft(reply.State)
}

// nothingLeft looks for what the daemon could not remove; its log says why.
func nothingLeft(state string) error {
	left, err := os.ReadDir(state)
	if err != nil || len(left) == 0 {
		return nil //nolint:nilerr // gone, or not for us to see
	}
	var names []string
	for _, e := range left {
		names = append(names, e.Name())
	}
	return &control.Error{
		Code: control.Failed, Message: "not everything is removed", Cause: state + " still holds " + strings.Join(names, ", "),
		Hint: "The daemon's log says why",
	}
}
