package main

import (
	"github.com/urfave/cli/v2"

	"weft/prog/control"
	"weft/prog/weftd"
)

func (a *app) joinCommand() *cli.Command {
	return &cli.Command{
		Name:      "join",
		Category:  groupCluster,
		Usage:     "enter a cluster",
		ArgsUsage: "TOKEN",
		Flags:     settingFlags("name", "advertise", "accept-overlap"),
		Description: examples(
			"weft join weft1…",
			"weft join @/root/token             the token is in a file",
			"weft join - < token                or on standard input",
			"WEFT_TOKEN=weft1… weft join"),
		Action: a.ask(0, 1, a.join),
	}
}

func (a *app) join(c *cli.Context, d *control.Client) error {
	typed := weftd.Config{Stdin: a.stdin, Join: c.Args().First()}
	if typed.Join == "" {
		typed.Join, _ = a.lookup("WEFT_TOKEN")
	}
	if typed.Join == "" {
		return usage("weft join needs TOKEN", "On a member, type: weft token create")
	}
	if err := flagsInto(c, &typed, true); err != nil {
		return err
	}
	token, err := typed.Token()
	if err != nil {
		return usage(err.Error())
	}
	reply, err := d.Join(c.Context, control.JoinRequest{
		Token: token, Name: typed.Name, Advertise: advertised(typed),
		AcceptOverlap: typed.AcceptOverlap,
	})
	switch {
	case err != nil:
		return err
	case reply.Existed:
		a.say("This machine is in cluster %s already, as %s.", short(reply.Cluster), reply.Name)
	default:
		a.say("Joined cluster %s as %s; %s vouched.", short(reply.Cluster), reply.Name, reply.Sponsor)
	}
	return nil
}
