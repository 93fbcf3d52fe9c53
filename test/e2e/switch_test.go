package e2e

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"weft/test/cluster"
	"weft/test/netlab"
)

// A better transport dies under a connection and a flood of pings, and comes back. While both work nothing is lost; when the
// one in use dies, the other takes over within about two seconds.
func TestTransportsSwitchUnderLoad(t *testing.T) {
	long(t)
	each(t, func(s *story, w way) {
		if w.port == 0 {
			s.Skip("it has no port of its own that could be shut")
		}
		s.form(w.args...)
		pods := s.pods()
		s.by(w.name)
		tr := s.transfer(pods[0], pods[1], pods[1].Addrs[0])
		s.flows(tr, 1<<20)

		flood := func() (result func() (lost uint64, gap float64)) {
			c := pods[0].Command(programs.Probe, "flood", "-json", "-rate", "1000", "-for", "2m", "-w", "2s", pods[1].Addrs[0].String()).Quiet()
			s.must(c.Start())
			return func() (uint64, float64) {
				_ = c.Stop(10 * time.Second)
				var r struct {
					Sent, Received uint64
					LongestGap     float64 `json:"longest_gap"`
				}
				s.must(json.Unmarshal([]byte(c.Stdout()), &r))
				return r.Sent - r.Received, r.LongestGap
			}
		}
		result := flood()
		tr.stall()
		cut := s.sites.Router.Drop(netlab.Drop{Proto: "udp", Port: w.port})
		s.by("sleeve")
		s.flows(tr, 1<<20)
		lost, gap := result()
		s.Logf("%s died: %d of 1,000 pings a second lost, longest gap %.2f s, the connection paused %.2f s (bar: 2 s)",
			w.name, lost, gap, tr.stall().Seconds())
		if gap > 10 {
			s.Errorf("packets found no way for %.1f s", gap)
		}

		// The way back, while both work.
		result = flood()
		cut.Heal()
		for _, pair := range [][2]*cluster.Machine{{s.a, s.b}, {s.b, s.a}} { // the guard against flapping may hold it off for 40 s
			s.must(cluster.Poll(s.within(3*time.Minute), func() error {
				st, err := pair[0].Status()
				if err == nil && (len(st.Peers) != 1 || st.Peers[0].Transport != w.name) {
					err = fmt.Errorf("%s reaches %s otherwise: %+v", pair[0], pair[1], st.Peers)
				}
				return err
			}))
		}
		s.flows(tr, 1<<20)
		lost, gap = result()
		s.Logf("back on %s: %d pings lost, longest gap %.3f s, the connection paused %.2f s (bar: none lost)", w.name, lost, gap, tr.stall().Seconds())
		if lost > 0 {
			s.Errorf("%d pings were lost by a change between transports that both work", lost)
		}
		s.finish(tr)
	})
}
