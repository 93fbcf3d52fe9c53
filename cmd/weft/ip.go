package main

import (
	"cmp"
	"strconv"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
)

func (a *app) ipCommand() *cli.Command {
	return &cli.Command{
		Name:     "ip",
		Category: groupPods,
		Usage:    "addresses",
		Subcommands: []*cli.Command{
			{
				Name:        "list",
				Usage:       "those of the pods on this machine",
				Flags:       []cli.Flag{jsonFlag()},
				Description: "weft ip list",
				Action:      a.ask(0, 0, a.ipList),
			},
			{
				Name:        "ring",
				Usage:       "which member owns which block",
				Flags:       []cli.Flag{jsonFlag()},
				Description: "weft ip ring",
				Action:      a.ask(0, 0, a.ipRing),
			},
		},
	}
}

func (a *app) ipList(c *cli.Context, d *control.Client) error {
	list, err := d.IPList(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return a.printJSON(list)
	}
	t := &table{head: []string{"ADDRESS", "CONTAINER", "IFNAME", "POD", "SINCE", "NETNS"}, drop: []string{"SINCE", "POD"}}
	for _, k := range list.Claims {
		t.add(cell{k.Address.String(), bold}, plainCell(k.Container), plainCell(k.Ifname), plainCell(k.Pod), plainCell(k.Created),
			plainCell(k.Netns))
	}
	a.printTable(t, "No pod is attached here. Attach one with: weft attach NETNS")
	return nil
}

func (a *app) ipRing(c *cli.Context, d *control.Client) error {
	ring, err := d.IPRing(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return a.printJSON(ring)
	}
	t := &table{head: []string{"PREFIX", "OWNER", "ID", "VIEW", "SEQ"}}
	for _, b := range ring.Blocks {
		t.add(cell{b.Prefix.String(), bold}, plainCell(cmp.Or(b.OwnerName, "?")), plainCell(short(b.Owner)),
			plainCell(strconv.FormatUint(b.View, 10)), plainCell(strconv.FormatUint(b.Seq, 10)))
	}
	a.printTable(t, "No block is known yet.")
	return nil
}
