package main

import (
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
)

func (a *app) peerCommand() *cli.Command {
	return &cli.Command{
		Name:     "peer",
		Category: groupLook,
		Usage:    "the other members",
		Subcommands: []*cli.Command{
			{
				Name:        "list",
				Usage:       "one per line",
				Flags:       []cli.Flag{jsonFlag()},
				Description: "weft peer list",
				Action:      a.ask(0, 0, a.peerList),
			},
			{
				Name:        "show",
				Usage:       "all about one",
				ArgsUsage:   "NAME",
				Flags:       []cli.Flag{jsonFlag()},
				Description: "weft peer show beta",
				Action:      a.ask(1, 1, a.peerShow),
			},
			a.peerRemoveCommand(),
		},
	}
}

func (a *app) peerList(c *cli.Context, d *control.Client) error {
	list, err := d.PeerList(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return a.printJSON(list)
	}
	t := &table{head: []string{"NAME", "ID", "STATE", "ENDPOINT", "BLOCKS"}, drop: []string{"ENDPOINT"}}
	for _, p := range list.Peers {
		endpoint := ""
		if p.Endpoint.IsValid() {
			endpoint = p.Endpoint.String()
		}
		t.add(cell{p.Name, bold}, plainCell(short(p.ID)), stateCell(p.State), plainCell(endpoint), plainCell(words(p.Blocks)))
	}
	a.printTable(t, "There are no peers yet. To let one in: weft token create")
	return nil
}

func (a *app) peerShow(c *cli.Context, d *control.Client) error {
	detail, err := d.PeerShow(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return a.printJSON(detail)
	}
	a.printLines(peerDetailLines(detail, a.screen()))
	return nil
}

func peerDetailLines(d control.PeerDetail, s screen) []string {
	p := d.Peer
	state := stateCell(p.State)
	var roles []string
	if d.Voter {
		roles = append(roles, "voter")
	}
	if d.Issuer {
		roles = append(roles, "issuer")
	}
	path := p.Path
	if len(p.Via) > 0 {
		path += " by way of " + strings.Join(p.Via, ", ")
	}
	if p.Endpoint.IsValid() {
		path += ", " + p.Endpoint.String()
	}
	seen, key := "never", ""
	if p.LastSeenS >= 0 {
		seen = showAge(p.LastSeenS) + " ago"
	}
	if p.KeyAgeS >= 0 && p.Encrypted {
		key = showAge(float64(p.KeyAgeS)) + " old"
	}
	lines := []string{title(s, "Peer") + s.paint(p.Name, bold) + "  " + s.paint(state.text, state.style)}
	lines = append(lines, facts(s,
		[2]string{"id", p.ID},
		[2]string{"role", strings.Join(roles, ", ")},
		[2]string{"seniority", strconv.FormatUint(d.JoinSeq, 10)},
		[2]string{"build", d.Build},
		[2]string{"seen", seen},
		[2]string{"blocks", words(p.Blocks)},
		[2]string{"transport", p.Transport},
		[2]string{"path", path},
		[2]string{"why", p.Reason},
		[2]string{"key", key},
		[2]string{"rtt", showMS(p.RTTms)},
		[2]string{"loss", showPercent(p.Loss)},
		[2]string{"mtu", strconv.Itoa(p.MTU)},
		[2]string{"received", showBytes(p.RxBytes)},
		[2]string{"sent", showBytes(p.TxBytes)},
		[2]string{"reachable", words(d.Endpoints)},
		[2]string{"can use", strings.Join(d.Transports, ", ")},
		[2]string{"trusts", words(d.Trusted)})...)
	if len(d.Links) == 0 {
		return lines
	}
	t := &table{
		head: []string{"TRANSPORT", "UP", "USED", "ENDPOINT", "MTU", "RTT", "LOSS", "WHY"},
		drop: []string{"MTU", "LOSS", "RTT", "ENDPOINT"},
	}
	for _, l := range d.Links {
		up := cell{"yes", good}
		if !l.Up {
			up = cell{"no", bad}
		}
		endpoint := ""
		if l.Endpoint.IsValid() {
			endpoint = l.Endpoint.String()
		}
		t.add(plainCell(l.Transport), up, plainCell(yesNo(l.InUse)), plainCell(endpoint), plainCell(strconv.Itoa(l.MTU)),
			plainCell(showMS(l.RTTms)), plainCell(showPercent(l.Loss)), cell{l.Reason, dim})
	}
	return append(append(lines, "", s.paint("Links", bold)), t.lines(s, 2)...)
}
