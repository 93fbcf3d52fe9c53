package e2e

import (
	"fmt"
	"testing"
	"time"

	"weft/router/wireguard"
	"weft/test/cluster"
	"weft/test/netlab"
)

// death is what a router drops so that this transport dies and the sleeve does not.
func (w way) death() (all []netlab.Drop) {
	switch {
	case w.port != 0:
		return []netlab.Drop{{Proto: "udp", Port: w.port}}
	case w.name == wireguard.UserName: // it shares the sleeve's port, not its first bytes
		for kind := range byte(4) {
			all = append(all, netlab.Drop{Proto: "udp", Begins: []byte{kind + 1, 0, 0, 0}})
		}
	}
	return all
}

// A better transport dies under a connection and a flood of pings, and comes back. While both work nothing is lost; when the
// one in use dies, the other takes over within about two seconds.
func TestTransportsSwitchUnderLoad(t *testing.T) {
	long(t)
	each(t, func(s *story, w way) {
		death := w.death()
		if len(death) == 0 {
			s.Skip("the sleeve is what others fall back on")
		}
		s.form(w.args...)
		pods := s.pods()
		s.by(w.name)
		tr := s.transfer(pods[0], pods[1], pods[1].Addrs[0])
		s.flows(tr, 1<<20)

		result := s.pinging(pods[0], pods[1], 1000)
		tr.stall()
		cut := s.sites.Router.Drop(death...)
		s.by("sleeve")
		s.flows(tr, 1<<20)
		r := result()
		s.Logf("%s died: %d of 1,000 pings a second lost, longest gap %.2f s, the connection paused %.2f s (bar: 2 s)",
			w.name, r.Sent-r.Received, r.LongestGap, tr.stall().Seconds())
		if r.LongestGap > 10 {
			s.Errorf("packets found no way for %.1f s", r.LongestGap)
		}

		// The way back, while both work.
		result = s.pinging(pods[0], pods[1], 1000)
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
		r = result()
		s.Logf("back on %s: %d pings lost, longest gap %.3f s, the connection paused %.2f s (bar: none lost)",
			w.name, r.Sent-r.Received, r.LongestGap, tr.stall().Seconds())
		if r.Received < r.Sent {
			s.Errorf("%d pings were lost by a change between transports that both work", r.Sent-r.Received)
		}
		s.finish(tr)
	})
}
