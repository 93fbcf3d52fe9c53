package e2e

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"weft/prog/control"
	"weft/test/cluster"
	"weft/test/netlab"
)

// row is the line of a peer in what `weft status` prints for people, by column.
func row(m *cluster.Machine, name string) (map[string]string, error) {
	out, err := m.CLI("status")
	if err != nil {
		return nil, err
	}
	var head []string
	var starts []int
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) > 2 && fields[0] == "NAME" && fields[1] == "STATE" {
			head = fields
			for _, h := range head {
				starts = append(starts, strings.Index(line, " "+h+" ")+1)
			}
			starts[len(starts)-1] = strings.Index(line, " "+head[len(head)-1]) + 1
		}
		if head == nil || len(fields) == 0 || fields[0] != name {
			continue
		}
		line = strings.TrimRight(line, "\n") + strings.Repeat(" ", len(line))
		cells := map[string]string{}
		for i, h := range head {
			end := len(line)
			if i+1 < len(starts) {
				end = starts[i+1]
			}
			cells[h] = strings.TrimSpace(line[starts[i]:end])
		}
		return cells, nil
	}
	return nil, fmt.Errorf("the status has no line about %s:\n%s", name, out)
}

// advice waits until doctor's last sentence about a peer holds some words, and is what people read too.
func (s *story) advice(m *cluster.Machine, name, words string) {
	s.Helper()
	s.must(cluster.Poll(s.within(startPatience), func() error {
		var doc control.Doctor
		if err := decode(m.Type("doctor", name, "--json"), &doc); err != nil {
			return err
		}
		if !strings.Contains(doc.Advice, words) {
			return fmt.Errorf("doctor %s on %s advises %q, want %q in it", name, m, doc.Advice, words)
		}
		for _, c := range doc.Checks {
			if c.State == control.CheckOK && c.Hint != "" {
				return fmt.Errorf("doctor %s on %s has a hint for what works: %+v", name, m, c)
			}
		}
		return nil
	}))
}

// Two machines that no hole can be punched between: status says to people and to programs who carries their packets, why, and how
// well, and doctor what would help.
func TestStatusShowsTheRelay(t *testing.T) {
	t.Parallel() // it mostly waits
	w := walkAround(t, netlab.Public, netlab.BehindHard, netlab.BehindHard)
	w.form("--transport", "sleeve")
	pods := w.pods()
	w.connected(pods)
	const reason = "hard NAT on both sides"
	a, b := w.machines[1], w.machines[2]
	for m, other := range map[*cluster.Machine]string{a: "b", b: "a"} {
		w.awaitPath(m, other, control.PathRelay, reason)
		w.must(cluster.Poll(w.within(startPatience), func() error {
			st, err := m.Status()
			if err != nil {
				return err
			}
			p := peerOf(st, other)
			if p.Path != control.PathRelay || !slices.Equal(p.Via, []string{"p"}) || !strings.Contains(p.Reason, reason) || p.Endpoint.IsValid() ||
				p.RTTms <= 0 || p.Loss < 0 || p.Loss > 1 || p.MTU < 1280 || !p.Encrypted || p.Asleep || p.LastSeenS < 0 {
				return fmt.Errorf("%s says of %s: %+v", m, other, p)
			}
			line, err := row(m, other)
			if err != nil {
				return err
			}
			mtu, _ := strconv.Atoi(line["MTU"])
			if line["PATH"] != "relayed via p" || !strings.Contains(line["WHY"], reason) || !strings.HasSuffix(line["RTT"], "ms") ||
				!strings.HasSuffix(line["LOSS"], "%") || mtu < 1280 || line["ENCRYPTED"] != "yes" {
				return fmt.Errorf("%s prints of %s: %v", m, other, line)
			}
			return nil
		}))
		w.advice(m, other, "Both are behind a hard NAT, which no hole can be punched through: forward UDP 6783 to ")
	}
}

// Whoever pings while a firewall opens sees the route of each reply: by the relay first, then directly. Status and doctor name
// the firewall before.
func TestPingSeesTheRouteChange(t *testing.T) {
	t.Parallel() // it mostly waits
	w := walkAround(t, netlab.Public, netlab.Public, netlab.Public)
	p, q, r := w.machines[0], w.machines[1], w.machines[2]
	wall := w.lab.Partition([]*netlab.Host{q.Host}, []*netlab.Host{r.Host})
	w.form("--transport", "sleeve")
	w.awaitPath(q, "r", control.PathRelay, "")
	w.advice(q, "r", "A firewall stands between q and r")

	ping := q.Command(programs.Weft, "--socket", q.Socket(), "ping", "r", "-c", "600").Quiet()
	w.must(ping.Start())
	_, err := ping.WaitOutput(w.within(startPatience), "relayed via "+p.Name())
	w.must(err)
	wall.Heal()
	direct := "direct " + r.AddrPort4(6783).String()
	_, err = ping.WaitOutput(w.within(startPatience), strings.ReplaceAll(direct, ".", `\.`))
	w.must(err)
	route := regexp.MustCompile(`  sleeve  (relayed via |direct|tcp )|  no answer: `)
	for line := range strings.Lines(ping.Stdout()) {
		if strings.HasSuffix(line, "\n") && !route.MatchString(line) {
			t.Errorf("a reply names no route: %q", line)
		}
	}
	w.awaitPath(q, "r", control.PathDirect, "")
	w.advice(q, "r", "q and r reach each other directly")
}
