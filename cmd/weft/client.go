package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	"github.com/urfave/cli/v2"
	"rsc.io/qr"

	"weft/prog/control"
)

func (a *app) clientCommand() *cli.Command {
	return &cli.Command{
		Name:     "client",
		Category: groupPods,
		Usage:    "laptops and phones that enter through this machine, with WireGuard and nothing of weft",
		Subcommands: []*cli.Command{
			{
				Name:      "add",
				Usage:     "let one in: prints its whole configuration, once; on a terminal also as a picture for the app on a phone",
				ArgsUsage: "NAME",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "endpoint", Usage: "`ADDRESS:PORT` where it shall reach this machine (default: the first that members are told)"},
				},
				Description: examples("weft client add laptop > weft.conf", "weft client add phone --endpoint 203.0.113.7:6783"),
				Action:      a.ask(1, 1, a.clientAdd),
			},
			{
				Name:        "list",
				Usage:       "show those of this machine",
				Flags:       []cli.Flag{jsonFlag()},
				Description: "weft client list",
				Action:      a.ask(0, 0, a.clientList),
			},
			{
				Name:        "remove",
				Usage:       "cut one off, at once",
				ArgsUsage:   "NAME",
				Description: "weft client remove laptop",
				Action:      a.ask(1, 1, a.clientRemove),
			},
		},
	}
}

func (a *app) clientAdd(c *cli.Context, d *control.Client) error {
	r := control.ClientAddRequest{Name: c.Args().First()}
	if text := c.String("endpoint"); text != "" {
		var err error
		if r.Endpoint, err = netip.ParseAddrPort(text); err != nil {
			return usage(fmt.Sprintf("want an address and a port such as 203.0.113.7:6783, got %q", text))
		}
	}
	reply, err := d.ClientAdd(c.Context, r)
	if err != nil {
		return err
	}
	fmt.Fprint(a.stdout, reply.Config)
	if s := a.screen(); s.columns > 0 {
		lines, err := picture(reply.Config)
		if err != nil {
			return err
		}
		a.printLines(append([]string{""}, lines...))
	}
	a.say("%s is let in. Its private key stands above and nowhere else; take it back with: weft client remove %s", reply.Name, reply.Name)
	return nil
}

func (a *app) clientList(c *cli.Context, d *control.Client) error {
	list, err := d.ClientList(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return a.printJSON(list)
	}
	t := &table{head: []string{"NAME", "ADDRESS", "HEARD AT", "LAST HANDSHAKE", "RX", "TX", "SINCE"}, drop: []string{"SINCE", "RX", "TX"}}
	for _, k := range list.Clients {
		var own []string
		for _, addr := range k.Addresses {
			own = append(own, addr.String())
		}
		t.add(cell{k.Name, bold}, plainCell(strings.Join(own, " ")), plainCell(cmp.Or(k.Endpoint, "-")), plainCell(cmp.Or(k.LastSeen, "never")),
			plainCell(fmt.Sprint(k.RxBytes)), plainCell(fmt.Sprint(k.TxBytes)), plainCell(k.Created))
	}
	a.printTable(t, "No client enters here. Let one in with: weft client add NAME")
	return nil
}

func (a *app) clientRemove(c *cli.Context, d *control.Client) error {
	name := c.Args().First()
	if err := d.ClientRemove(c.Context, name); err != nil {
		return err
	}
	a.say("%s is cut off.", name)
	return nil
}

// picture draws text as a QR code, two rows of dots a line: dark dots are blanks, for most terminals are dark.
func picture(text string) ([]string, error) {
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		return nil, fmt.Errorf("draw configuration: %w", err)
	}
	const margin = 2
	var lines []string
	for y := -margin; y < code.Size+margin; y += 2 {
		var line strings.Builder
		for x := -margin; x < code.Size+margin; x++ {
			upper, lower := code.Black(x, y), code.Black(x, y+1)
			switch {
			case upper && lower:
				line.WriteRune(' ')
			case upper:
				line.WriteRune('▄')
			case lower:
				line.WriteRune('▀')
			default:
				line.WriteRune('█')
			}
		}
		lines = append(lines, line.String())
	}
	return lines, nil
}
