package main

import (
	"fmt"
	"net/netip"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
)

func (a *app) attachCommand() *cli.Command {
	return &cli.Command{
		Name:      "attach",
		Category:  groupPods,
		Usage:     "give a network namespace an interface and addresses; prints them, IPv4 first",
		ArgsUsage: "NETNS",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "`NAME` of the container (default: that of the namespace)"},
			&cli.StringFlag{Name: "ip", Usage: "`ADDRESS` to take out of this machine's blocks (default: any)"},
			&cli.StringFlag{Name: "ifname", Usage: "`NAME` of the interface inside (default eth0)"},
		},
		Description: examples(
			"ip netns add web && weft attach web",
			"weft attach $(docker inspect -f '{{.State.Pid}}' CONTAINER)    a process",
			"weft attach /run/netns/web --ip 10.32.0.7"),
		Action: a.ask(1, 1, a.attach),
	}
}

func (a *app) attach(c *cli.Context, d *control.Client) error {
	path, err := a.findNetns(c.Args().First())
	if err != nil {
		return err
	}
	r := control.AttachRequest{Netns: path, Container: c.String("name"), Ifname: c.String("ifname")}
	if c.IsSet("ip") {
		if r.IP, err = netip.ParseAddr(c.String("ip")); err != nil {
			return usage(fmt.Sprintf("--ip: want an address such as 10.32.0.7, got %q", c.String("ip")))
		}
	}
	reply, err := d.Attach(c.Context, r)
	if err != nil {
		return err
	}
	if reply.Existed {
		a.say("%s was attached already.", c.Args().First())
	}
	for _, addr := range reply.Addresses {
		fmt.Fprintln(a.stdout, addr)
	}
	return nil
}
