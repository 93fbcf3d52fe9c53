package main

import (
	"github.com/urfave/cli/v2"

	"weft/prog/control"
)

func (a *app) issuerCommand() *cli.Command {
	return &cli.Command{
		Name:     "issuer",
		Category: groupCluster,
		Usage:    "members that may admit others",
		Subcommands: []*cli.Command{
			{
				Name:        "list",
				Usage:       "show them",
				Flags:       []cli.Flag{jsonFlag()},
				Description: "weft issuer list",
				Action:      a.ask(0, 0, a.issuerList),
			},
			{
				Name:        "add",
				Usage:       "let a member admit others; needs the root key, which the founder holds",
				ArgsUsage:   "PEER",
				Description: "weft issuer add beta",
				Action:      a.ask(1, 1, a.issuerAdd),
			},
			{
				Name:        "remove",
				Usage:       "end that",
				ArgsUsage:   "PEER",
				Description: "weft issuer remove beta",
				Action:      a.ask(1, 1, a.issuerRemove),
			},
		},
	}
}

func (a *app) issuerList(c *cli.Context, d *control.Client) error {
	list, err := d.IssuerList(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return a.printJSON(list)
	}
	t := &table{head: []string{"NAME", "ID", "STATE", "ROOT KEY"}}
	for _, i := range list.Issuers {
		name := i.Name
		if i.Self {
			name += " (here)"
		}
		t.add(cell{name, bold}, plainCell(short(i.ID)), stateCell(i.State), plainCell(yesNo(i.Root)))
	}
	a.printTable(t, "There are no issuers.")
	return nil
}

func (a *app) issuerAdd(c *cli.Context, d *control.Client) error {
	if err := d.IssuerAdd(c.Context, c.Args().First()); err != nil {
		return err
	}
	a.say("%s may admit machines now.", c.Args().First())
	return nil
}

func (a *app) issuerRemove(c *cli.Context, d *control.Client) error {
	if err := d.IssuerRemove(c.Context, c.Args().First()); err != nil {
		return err
	}
	a.say("%s may admit no machine any more.", c.Args().First())
	return nil
}
