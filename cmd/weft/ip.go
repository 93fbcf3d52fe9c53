package main

import (
	"cmp"
	"fmt"
	"net/netip"
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
				Usage:       "those of the pods on this machine, and those kept by hand",
				Flags:       []cli.Flag{jsonFlag()},
				Description: "weft ip list",
				Action:      a.ask(0, 0, a.ipList),
			},
			{
				Name:        "ring",
				Usage:       "which member owns which block; on a terminal also as bars",
				Flags:       []cli.Flag{jsonFlag()},
				Description: "weft ip ring",
				Action:      a.ask(0, 0, a.ipRing),
			},
			{
				Name:      "claim",
				Usage:     "keep an address of this machine's blocks for a pod to come; prints it, IPv4 first",
				ArgsUsage: "[ADDRESS]",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "name", Usage: "`NAME` of the pod: attach it with that name and this address (default: one is made)"},
				},
				Description: examples(
					"weft ip claim --name web",
					"weft ip claim 10.32.0.7 --name web && weft attach web --name web --ip 10.32.0.7"),
				Action: a.ask(0, 1, a.ipClaim),
			},
			{
				Name:        "release",
				Usage:       "give up what was kept by hand",
				ArgsUsage:   "ADDRESS|NAME",
				Description: examples("weft ip release 10.32.0.7", "weft ip release web"),
				Action:      a.ask(1, 1, a.ipRelease),
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
	for _, k := range list.Reserved {
		t.add(cell{k.Address.String(), bold}, plainCell(k.Container), plainCell(""), plainCell(""), plainCell(k.Created),
			cell{"kept by hand", dim})
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
	if s := a.screen(); s.columns > 0 && len(ring.Blocks) > 0 {
		a.printLines(append([]string{""}, ringBars(ring.Blocks, s)...))
	}
	return nil
}

func (a *app) ipClaim(c *cli.Context, d *control.Client) error {
	r := control.IPClaimRequest{Name: c.String("name")}
	if c.NArg() > 0 {
		var err error
		if r.Address, err = netip.ParseAddr(c.Args().First()); err != nil {
			return usage(fmt.Sprintf("want an address such as 10.32.0.7, got %q", c.Args().First()))
		}
	}
	reply, err := d.IPClaim(c.Context, r)
	if err != nil {
		return err
	}
	a.say("Kept as %s until: weft ip release %s", reply.Name, reply.Name)
	for _, addr := range reply.Addresses {
		fmt.Fprintln(a.stdout, addr)
	}
	return nil
}

func (a *app) ipRelease(c *cli.Context, d *control.Client) error {
	reply, err := d.IPRelease(c.Context, control.IPReleaseRequest{What: c.Args().First()})
	if err != nil {
		return err
	}
	for _, addr := range reply.Addresses {
		a.say("Released %s.", addr)
	}
	return nil
}
