package e2e

import (
	"fmt"
	"testing"

	"weft/prog/control"
	"weft/test/cluster"
)

// In a large cluster tunnels beside the sleeve's rest like its sessions: they are asked nothing once they carry nothing. The
// first packets wake them, and what has died meanwhile is left for the sleeve within some seconds.
func TestTunnelsRestInLargeClusters(t *testing.T) {
	long(t)
	each(t, func(s *story, w way) {
		if w.name == "sleeve" {
			s.Skip("it is told in a story of its own")
		}
		s.form(append(w.args, "--sparse-above", "1", "--sparse-idle", "6s")...)
		pods := s.pods()
		result := s.pinging(pods[0], pods[1], 100)
		s.by(w.name)
		asleep := func(m *cluster.Machine, want bool) {
			s.Helper()
			_, err := m.WaitFor(s.within(startPatience), func(st control.Status) error {
				for _, p := range st.Peers {
					if p.Transport != w.name || p.Asleep != want {
						return fmt.Errorf("asleep is %v by %s, not %v by %s", p.Asleep, p.Transport, want, w.name)
					}
				}
				return nil
			})
			s.must(err)
		}
		asleep(s.a, false)
		result() // some waited too long for the sleeve to wake, before this transport was chosen
		asleep(s.a, true)
		asleep(s.b, true)
		result = s.pinging(pods[0], pods[1], 100)
		asleep(s.a, false)
		asleep(s.b, false)
		if r := result(); r.Received < r.Sent {
			s.Errorf("%d of %d pings were lost when the tunnel woke", r.Sent-r.Received, r.Sent)
		}
		if w.port == 0 {
			return
		}
		asleep(s.a, true)
		asleep(s.b, true)
		cut := s.sites.Router.BlockUDP(w.port)
		result = s.pinging(pods[0], pods[1], 100)
		s.by("sleeve")
		s.connected(pods)
		r := result()
		s.Logf("%s died in its sleep: longest gap %.2f s", w.name, r.LongestGap)
		cut.Heal()
	})
}
