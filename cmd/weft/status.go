package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
)

// watchInterval is how often --watch draws.
const watchInterval = time.Second

func (a *app) statusCommand() *cli.Command {
	return &cli.Command{
		Name:     "status",
		Category: groupLook,
		Usage:    "this node, its transports, its peers, its addresses",
		Flags: []cli.Flag{
			jsonFlag(),
			&cli.BoolFlag{Name: "watch", Usage: "draw again every second, until ^C"},
		},
		Description: examples(
			"weft status --watch",
			"weft status --json | jq -r '.peers[] | select(.state != \"alive\") | .name'"),
		Action: a.ask(0, 0, a.status),
	}
}

func (a *app) status(c *cli.Context, d *control.Client) error {
	if c.Bool("watch") {
		return a.watch(c, d)
	}
	st, err := d.Status(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return a.printJSON(st)
	}
	a.printLines(statusLines(st, a.screen()))
	return nil
}

// watch goes on when the daemon is away for a while, for that is when people watch; only the first question must be
// answered.
func (a *app) watch(c *cli.Context, d *control.Client) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for first := true; ; first = false {
		st, err := d.Status(c.Context)
		switch {
		case c.Context.Err() != nil:
			return nil
		case err != nil && first:
			return err
		case c.Bool("json") && err == nil:
			if err := a.printJSON(st); err != nil {
				return err
			}
		case c.Bool("json"):
			a.say("weft: %s", sentence(err, nil))
		case err != nil:
			a.draw([]string{"weft: " + sentence(err, nil)}, first)
		default:
			a.draw(statusLines(st, a.screen()), first)
		}
		select {
		case <-c.Context.Done():
			return nil
		case <-tick.C:
		}
	}
}

// draw puts lines where the last ones were. It writes all at once and wipes only what is left over, so that nothing
// flickers. Where there is no screen to wipe, pictures follow each other.
func (a *app) draw(lines []string, first bool) {
	text := strings.Join(lines, "\n") + "\n"
	if _, isTTY := a.terminal(); isTTY {
		text = "\x1b[H" + strings.ReplaceAll(text, "\n", "\x1b[K\n") + "\x1b[J" // corner; end of line; rest of screen
		if first {
			text = "\x1b[2J" + text
		}
	} else if !first {
		text = "\n" + text
	}
	fmt.Fprint(a.stdout, text)
}

// statusLines renders a status for people.
func statusLines(st control.Status, s screen) []string {
	parts := [][]string{nodeLines(st, s)}
	if st.Cluster.ID != "" {
		parts = append(parts, clusterLines(st, s), spaceLines(st.IPAM, s))
	}
	parts = append(parts, transportLines(st.Transports, s))
	if st.Cluster.ID != "" {
		parts = append(parts, peerLines(st.Peers, s))
	}
	var warnings []string
	for _, w := range st.Warnings {
		warnings = append(warnings, prose(s, "Warning: ", w, warn)...)
	}
	if len(warnings) > 0 {
		parts = append(parts, warnings)
	}
	var lines []string
	for i, p := range parts {
		if i > 0 {
			lines = append(lines, "")
		}
		lines = append(lines, p...)
	}
	return lines
}

func nodeLines(st control.Status, s screen) []string {
	n := st.Node
	head := title(s, "Node")
	if n.Name != "" {
		head += s.paint(n.Name, bold) + "  "
	}
	state := stateCell(n.State)
	lines := []string{head + s.paint(state.text, state.style)}
	if n.Reason != "" {
		lines = append(lines, prose(s, margin, n.Reason, state.style)...)
	}
	var roles []string
	for _, r := range []struct {
		name string
		has  bool
	}{{"voter", n.Voter}, {"issuer", n.Issuer}, {"relay", n.Relay}} {
		if r.has {
			roles = append(roles, r.name)
		}
	}
	uptime := showAge(float64(n.UptimeS))
	if n.Build != "" {
		uptime += ", weft " + n.Build
	}
	nat := n.NAT
	if nat == "none" || nat == "unknown" {
		nat = ""
	}
	return append(lines, facts(s,
		[2]string{"id", n.ID},
		[2]string{"pod side", words(n.Overlay)},
		[2]string{"underlay", words(n.Underlay)},
		[2]string{"NAT", nat},
		[2]string{"role", strings.Join(roles, ", ")},
		[2]string{"up", uptime})...)
}

func clusterLines(st control.Status, s screen) []string {
	c := st.Cluster
	alive := good
	if c.Alive < c.Members {
		alive = warn
	}
	encryption := "all traffic between nodes encrypted"
	if c.Encryption == control.EncryptionTrustedSubnets {
		encryption = "not encrypted inside trusted subnets"
	}
	head := title(s, "Cluster") + s.paint(short(c.ID), bold) + "  " +
		s.paint(fmt.Sprintf("%d of %d alive", c.Alive, c.Members), alive) + ", " + encryption
	return append([]string{head}, facts(s, [2]string{"pools", words(c.Pools)})...)
}

func spaceLines(ip control.IPAM, s screen) []string {
	state := stateCell(ip.State)
	counts := fmt.Sprintf("%d used, %s free", ip.Used, amount(ip.Free))
	if ip.Unreachable > 0 {
		counts += fmt.Sprintf(", %s with members that are away", amount(ip.Unreachable))
	}
	lines := []string{title(s, "Addresses") + s.paint(state.text, state.style) + "  " + counts}
	if ip.Reason != "" {
		lines = append(lines, prose(s, margin, ip.Reason, state.style)...)
	}
	return append(lines, facts(s, [2]string{"blocks", words(ip.Blocks)})...)
}

// amount is a number of addresses. Those of IPv6 networks are not counted.
func amount(n uint64) string {
	const countless = 1 << 48
	if n >= countless {
		return "countless"
	}
	return strconv.FormatUint(n, 10)
}

func transportLines(transports []control.Transport, s screen) []string {
	lines := []string{s.paint("Transports", bold)}
	t := &table{head: []string{"NAME", "HERE", "WHY"}, drop: []string{""}}
	for _, tr := range transports {
		can := cell{"yes", good}
		if !tr.Available {
			can = cell{"no", dim}
		}
		t.add(plainCell(tr.Name), can, cell{tr.Reason, dim})
	}
	return append(lines, t.lines(s, 2)...)
}

func peerLines(peers []control.Peer, s screen) []string {
	if len(peers) == 0 {
		return []string{title(s, "Peers") + "none yet; to let one in, type: weft token create"}
	}
	return append([]string{s.paint("Peers", bold)}, peerTable(peers).lines(s, 2)...)
}

// peerTable is one line per peer.
func peerTable(peers []control.Peer) *table {
	t := &table{
		head: []string{"NAME", "STATE", "TRANSPORT", "PATH", "ENCRYPTED", "RTT", "LOSS", "MTU", "RX", "TX", "WHY"},
		drop: []string{"TX", "RX", "MTU", "LOSS", "RTT", "PATH"},
	}
	for _, p := range peers {
		state := stateCell(p.State)
		if p.State != control.PeerAlive && p.LastSeenS > 0 {
			state.text += " " + showAge(p.LastSeenS)
		}
		encrypted := cell{}
		if p.Transport != "" {
			encrypted = cell{"yes", good}
			if !p.Encrypted {
				encrypted = cell{"NO", warn}
			}
		}
		path := cell{p.Path, plain}
		switch p.Path {
		case control.PathRelay:
			path = cell{"relayed via " + strings.Join(p.Via, " and "), warn}
		case control.PathTCP:
			path.style = warn
		case control.PathNone:
			path = cell{"none", bad}
			if p.Asleep {
				path = cell{"asleep", dim}
			}
		}
		loss := plainCell("")
		if p.RTTms > 0 || p.Loss > 0 {
			loss = plainCell(showPercent(p.Loss))
		}
		if p.Loss >= 0.01 {
			loss.style = warn
		}
		mtu := ""
		if p.MTU > 0 {
			mtu = strconv.Itoa(p.MTU)
		}
		t.add(cell{p.Name, bold}, state, plainCell(p.Transport), path, encrypted, plainCell(showMS(p.RTTms)), loss, plainCell(mtu),
			plainCell(showBytes(p.RxBytes)), plainCell(showBytes(p.TxBytes)), cell{p.Reason, dim})
	}
	return t
}

// margin is where the text of each part begins.
const margin = "            "

func title(s screen, word string) string {
	return s.paint(word, bold) + margin[len(word):]
}

// facts are indented lines of name and value; those without a value are left out.
func facts(s screen, pairs ...[2]string) []string {
	var lines []string
	for _, p := range pairs {
		if p[1] != "" {
			lines = append(lines, "  "+s.paint(fmt.Sprintf("%-10s", p[0]), dim)+p[1])
		}
	}
	return lines
}

// prose is a sentence that is wrapped under its own beginning.
func prose(s screen, start, text string, st style) []string {
	var lines []string
	for i, w := range wrap(text, s.columns-len(start)) {
		if i > 0 {
			start = strings.Repeat(" ", len(start))
		}
		lines = append(lines, start+s.paint(w, st))
	}
	return lines
}
