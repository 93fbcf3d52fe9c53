package main

import (
	"fmt"
	"strconv"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
)

func (a *app) tokenCommand() *cli.Command {
	return &cli.Command{
		Name:     "token",
		Category: groupCluster,
		Usage:    "invitations for other machines",
		Subcommands: []*cli.Command{
			{
				Name:  "create",
				Usage: "make an invitation and print it, this once",
				Flags: []cli.Flag{
					&cli.DurationFlag{Name: "ttl", Usage: "`DURATION` for which it is good (default 24h)"},
					&cli.IntFlag{Name: "uses", Usage: "`N` machines it admits (default: no limit)"},
					&cli.BoolFlag{Name: "ephemeral", Usage: "for machines that come and go: they have no vote"},
				},
				Description: examples(
					"weft token create --ttl 1h --uses 3",
					"weft token create | ssh node2 weft join -"),
				Action: a.ask(0, 0, a.tokenCreate),
			},
			{
				Name:        "list",
				Usage:       "show invitations, without their secrets",
				Flags:       []cli.Flag{jsonFlag()},
				Description: "weft token list",
				Action:      a.ask(0, 0, a.tokenList),
			},
			{
				Name:        "revoke",
				Usage:       "end an invitation",
				ArgsUsage:   "ID",
				Description: "weft token revoke mzxw6ytb",
				Action:      a.ask(1, 1, a.tokenRevoke),
			},
		},
	}
}

func (a *app) tokenCreate(c *cli.Context, d *control.Client) error {
	switch {
	case c.IsSet("ttl") && c.Duration("ttl") <= 0:
		return usage("--ttl: want a time such as 24h")
	case c.IsSet("uses") && c.Int("uses") < 1:
		return usage("--uses: want a positive number")
	}
	t, err := d.TokenCreate(c.Context, control.TokenRequest{
		TTL: control.Duration(c.Duration("ttl")), Uses: c.Int("uses"),
		Ephemeral: c.Bool("ephemeral"),
	})
	if err != nil {
		return err
	}
	a.say("On the other machine, before %s, type:\n%s", t.Expires, joinLine(t.Token))
	fmt.Fprintln(a.stdout, t.Token)
	return nil
}

func (a *app) tokenList(c *cli.Context, d *control.Client) error {
	list, err := d.TokenList(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return a.printJSON(list)
	}
	t := &table{head: []string{"ID", "EXPIRES", "USED", "OF", "EPHEMERAL", "STATE"}}
	for _, k := range list.Tokens {
		limit, state := "-", cell{"open", good}
		if k.Uses > 0 {
			limit = strconv.Itoa(k.Uses)
		}
		switch {
		case k.Revoked:
			state = cell{"revoked", bad}
		case k.Uses > 0 && k.Used >= k.Uses:
			state = cell{"used up", dim}
		}
		t.add(cell{k.ID, bold}, plainCell(k.Expires), plainCell(strconv.Itoa(k.Used)), plainCell(limit), plainCell(yesNo(k.Ephemeral)), state)
	}
	a.printTable(t, "There are no invitations. Make one with: weft token create")
	return nil
}

func (a *app) tokenRevoke(c *cli.Context, d *control.Client) error {
	id := c.Args().First()
	if err := d.TokenRevoke(c.Context, id); err != nil {
		return err
	}
	a.say("Revoked %s. Machines that joined with it stay members.", id)
	return nil
}
