package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/netlab"
)

// Two machines from which nothing gets out but TCP are carried by a public one: neither its daemon's death nor its own tears
// them apart. Whoever pings meanwhile sees the route change.
func TestRelaysOverTCP(t *testing.T) {
	t.Parallel() // it mostly waits
	w := walkAround(t, netlab.Public, netlab.Public, netlab.OnlyTCP, netlab.OnlyTCP)
	w.form("--transport", "sleeve")
	pods := w.pods()
	w.connected(pods)
	a, b := w.machines[2], w.machines[3]
	w.awaitPath(b, "a", control.PathRelay, "")
	via := w.awaitPath(a, "b", control.PathRelay, "").Via[0]
	carrier := strings.Index("pq", via)
	w.advice(a, "b", "UDP does not pass at ")

	flood := w.flood(pods[2].Host, pods[3].Addrs[0].String(), 6*time.Second)
	w.must(w.machines[carrier].Kill())
	w.must(w.machines[carrier].Up("--transport", "sleeve"))
	w.whole()
	lost, text := flood()
	t.Logf("the daemon of %s, which carries by TCP, was killed and started again: %s", via, text)
	if lost > 500 { // a stream that ended would cost twice as many; a loaded machine loses some by itself
		t.Errorf("lost %d packets", lost)
	}

	via = w.awaitPath(a, "b", control.PathRelay, "").Via[0]
	other := strings.Trim("pq", via)
	ping := a.Command(programs.Weft, "--socket", a.Socket(), "ping", "b", "-c", "600").Quiet()
	w.must(ping.Start())
	route := func(by string) {
		t.Helper()
		_, err := ping.WaitOutput(w.within(startPatience), "relayed via "+by)
		w.must(err)
	}
	route(via)
	flood = w.flood(pods[2].Host, pods[3].Addrs[0].String(), 8*time.Second)
	w.homes[strings.Index("pq", via)].Link.Down()
	_, text = flood()
	t.Logf("%s, which carried by TCP, was lost: %s", via, text)
	w.must(pods[2].WaitPing(w.within(patience), pods[3].Addrs[0]))
	_, err := a.WaitFor(w.within(startPatience), func(st control.Status) error {
		if p := peerOf(st, "b"); p.Path != control.PathRelay || !slices.Equal(p.Via, []string{other}) {
			return fmt.Errorf("b is reached by path %q via %v", p.Path, p.Via)
		}
		return nil
	})
	w.must(err)
	route(other)
}

// What doctor says of a peer that is not there, of one that was removed, and of a name that nobody has.
func TestDoctorNamesWhoIsGone(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.form("--transport", "sleeve")
	advice := func(words string) {
		t.Helper()
		_, err := s.a.WaitFor(s.within(startPatience), func(control.Status) error {
			var doc control.Doctor
			r := s.a.Type("doctor", "c", "--json") // which fails when a check does
			if err := json.Unmarshal([]byte(r.Stdout), &doc); err != nil {
				return fmt.Errorf("%w: %s", err, r.Stderr)
			}
			if !strings.Contains(doc.Advice, words) {
				return fmt.Errorf("doctor advises %q, want %q in it", doc.Advice, words)
			}
			return nil
		})
		s.must(err)
	}
	advice("a and c reach each other directly")
	s.refused(s.a.Type("doctor", "nobody").Failure(), "nobody")
	s.must(s.c.Kill())
	s.must(s.c.KillWire(s.within(startPatience)))
	advice("c is not reached in any way: see whether weft runs there")
	s.must(s.a.Type("peer", "remove", "--force", "c").Failure())
	advice("c was removed from the cluster")
}
