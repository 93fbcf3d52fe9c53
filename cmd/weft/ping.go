package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
)

func (a *app) pingCommand() *cli.Command {
	return &cli.Command{
		Name:      "ping",
		Category:  groupLook,
		Usage:     "probe a peer through the data path; each reply names transport and path",
		ArgsUsage: "PEER",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "c", Aliases: []string{"count"}, Usage: "`N` probes (default: until ^C)"},
			&cli.DurationFlag{Name: "i", Aliases: []string{"interval"}, Usage: "`DURATION` between probes (default 1s)"},
			jsonFlag(),
		},
		Description: examples("weft ping beta -c 3", "weft ping 10.36.0.1"),
		Action:      a.ask(1, 1, a.ping),
	}
}

// tally is what ping has seen so far.
type tally struct {
	sent, answered int
	least, most    float64 // ms
	total          float64
}

func (t *tally) add(r control.PingReply) {
	t.sent++
	if r.Lost != "" {
		return
	}
	if t.answered == 0 || r.RTTms < t.least {
		t.least = r.RTTms
	}
	t.answered++
	t.most = max(t.most, r.RTTms)
	t.total += r.RTTms
}

func (t *tally) String() string {
	s := fmt.Sprintf("%d sent, %d answered, %s lost", t.sent, t.answered, showPercent(1-float64(t.answered)/float64(max(t.sent, 1))))
	if t.answered > 0 {
		s += fmt.Sprintf("; %s at least, %s on average, %s at most", showMS(t.least), showMS(t.total/float64(t.answered)), showMS(t.most))
	}
	return s
}

func (a *app) ping(c *cli.Context, d *control.Client) error {
	switch {
	case c.IsSet("c") && c.Int("c") < 1:
		return usage("-c: want a positive number")
	case c.IsSet("i") && c.Duration("i") < 10*time.Millisecond:
		return usage("-i: want 10ms or more")
	}
	var seen tally
	err := d.Ping(c.Context, control.PingRequest{Peer: c.Args().First(), Count: c.Int("c"), Interval: control.Duration(c.Duration("i"))},
		func(r control.PingReply) error {
			seen.add(r)
			return a.showReply(c, r)
		})
	if err != nil && (c.Context.Err() == nil || seen.sent == 0) {
		return err
	}
	if !c.Bool("json") {
		a.say("%s", &seen)
	}
	if seen.answered == 0 {
		return &shownError{}
	}
	return nil
}

func (a *app) showReply(c *cli.Context, r control.PingReply) error {
	if c.Bool("json") {
		b, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("print reply: %w", err)
		}
		fmt.Fprintf(a.stdout, "%s\n", b)
		return nil
	}
	who := r.Peer
	if r.Address.IsValid() {
		who += " (" + r.Address.String() + ")"
	}
	if r.Lost != "" {
		fmt.Fprintf(a.stdout, "%d  %s  no answer: %s\n", r.Seq, who, r.Lost)
		return nil
	}
	fmt.Fprintf(a.stdout, "%d  %s  %s  %s  %s\n", r.Seq, who, showMS(r.RTTms), r.Transport, route(r.Path, r.TCP, r.Via, r.Endpoint))
	return nil
}

// route is the way of packets to a peer: direct 192.0.2.8:6783, tcp 192.0.2.8:443, or relayed via beta.
func route(path string, tcp bool, via []string, endpoint netip.AddrPort) string {
	switch {
	case len(via) > 0:
		return "relayed via " + strings.Join(via, ", ")
	case tcp:
		path = "tcp"
	}
	if endpoint.IsValid() {
		path += " " + endpoint.String()
	}
	return path
}
