package e2e

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft/test/cluster"
	"weft/test/netlab"
)

// The daemon is killed, started again and stopped under a flood of 1,000 packets a second: none is lost, because the wire
// carries on and is taken over.
func TestDaemonDiesUnderLoad(t *testing.T) {
	s := tell(t)
	s.form()
	pods := s.pods()
	s.connected(pods)
	watch := s.watch(s.pools()...)

	flood := s.flood(pods[0].Host, pods[1].Addrs[0].String(), 6*time.Second)
	wire := s.a.Wire()
	s.must(s.a.Kill())
	s.must(s.a.Up())
	s.whole()
	s.must(s.a.Stop())
	s.must(s.a.Up())
	s.whole()
	if now := s.a.Wire(); now != wire {
		s.Errorf("the wire was process %d and is %d", wire, now)
	}
	lost, text := flood()
	t.Logf("daemon killed and stopped: %s", text)
	if lost != 0 {
		s.Errorf("lost %d packets: %s", lost, text)
	}
	s.sealed(watch)
}

// The wire is killed: the daemon starts another, traffic is back by itself, and nothing went out in clear meanwhile.
func TestWireDiesUnderLoad(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.form()
	pods := s.pods()
	s.connected(pods)
	watch := s.watch(s.pools()...)

	flood := s.flood(pods[0].Host, pods[1].Addrs[0].String(), 5*time.Second)
	s.must(s.a.KillWire(s.within(patience)))
	s.whole()
	lost, text := flood()
	t.Logf("wire killed, of 1,000 packets a second (bar: 2,000 lost): %s", text)
	if lost == 0 {
		s.Error("nothing was lost: was the wire killed at all?")
	}
	s.connected(pods)
	s.sealed(watch)
}

// Everything is stopped, wires too, and started again in one order and another: every pod keeps its address.
func TestColdStartKeepsAddresses(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.form()
	pods := s.pods()
	s.connected(pods)
	watch := s.watch(s.pools()...)
	for _, order := range [][]int{{2, 1, 0}, {1, 0, 2}, {0, 1, 2}} {
		for _, m := range s.machines {
			s.must(m.Kill())
			s.must(m.KillWire(s.within(patience)))
		}
		began := time.Now()
		for _, i := range order {
			s.must(s.machines[i].Up())
		}
		s.whole()
		s.took(fmt.Sprintf("cold start in the order %v", order), began)
		for _, p := range pods {
			before := fmt.Sprint(p.Addrs)
			s.must(p.Attach())
			if after := fmt.Sprint(p.Addrs); after != before {
				s.Errorf("%s had %s and has %s", p, before, after)
			}
		}
		s.connected(pods)
		s.distinct()
	}
	s.sealed(watch)
}

var floodReport = regexp.MustCompile(`sent (\d+), received (\d+), lost (\d+)`)

// flood sends 1,000 packets a second in the background; the function waits for its end and tells how many were lost.
func (s *story) flood(from *netlab.Host, to string, d time.Duration) func() (lost int, report string) {
	s.Helper()
	c := from.Command(programs.Probe, "flood", "-rate", "1000", "-for", d.String(), "-w", "5s", to).Quiet()
	began := s.echoes(from)
	s.must(c.Start())
	s.must(cluster.Poll(s.within(patience), func() error { // a greeting comes before it
		if n := s.echoes(from) - began; n < 3 {
			return fmt.Errorf("the flood of %s has not begun: %d pings", from, n)
		}
		return nil
	}))
	return func() (int, string) {
		s.Helper()
		<-c.Done()
		m := floodReport.FindStringSubmatch(c.Stdout())
		if m == nil || m[1] == "0" {
			s.Fatalf("the flood reported nothing: %q %q", c.Stdout(), c.Stderr())
		}
		lost, err := strconv.Atoi(m[3])
		s.must(err)
		return lost, c.Stdout()
	}
}

// echoes counts the pings that have left a host, IPv4; the kernel shows how many messages of ICMP's type 8 were sent.
func (s *story) echoes(h *netlab.Host) (n int) {
	s.Helper()
	out, err := h.Exec("cat", "/proc/net/snmp")
	s.must(err)
	_, names, _ := strings.Cut(out, "IcmpMsg:")
	names, counts, _ := strings.Cut(names, "IcmpMsg:")
	at := slices.Index(strings.Fields(names), "OutType8")
	if values := strings.Fields(counts); at >= 0 && at < len(values) {
		n, err = strconv.Atoi(values[at])
		s.must(err)
	}
	return n // 0: none so far
}
