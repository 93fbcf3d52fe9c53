package e2e

import (
	"testing"
	"time"

	"weft/test/cluster"
	"weft/test/netlab"
)

// Each end's daemon is killed at the moment at which it chose a better transport, before it can do anything else. The data
// plane has all that it needs by then, and so has the disk: no packet is lost, neither without a daemon nor when the next
// one comes.
func TestDaemonKilledAtTheMomentOfTheChoice(t *testing.T) {
	long(t)
	each(t, func(s *story, w way) {
		if w.name == "sleeve" {
			s.Skip("there is nothing to choose")
		}
		s.form(w.args...)
		pods := s.pods()
		result := s.pinging(pods[0], pods[1], 200)
		ends := [2]*cluster.Machine{s.a, s.b}
		for i, m := range ends {
			s.carried(m, ends[1-i], w.name)
			s.must(m.Kill())
		}
		heard := pods[1].Capture("eth0", netlab.CaptureOptions{Keep: 1})
		s.must(heard.WaitFor(s.within(startPatience), 2000)) // requests and replies: five seconds
		heard.Stop()
		began := time.Now()
		for _, m := range ends {
			s.must(m.Up(w.args...))
		}
		s.whole()
		s.by(w.name)
		s.took("by "+w.name+", both daemons started", began)
		r := result()
		s.Logf("%d of %d pings lost, longest gap %.2f s", r.Sent-r.Received, r.Sent, r.LongestGap)
		if r.Received < r.Sent {
			s.Errorf("%d of %d pings were lost", r.Sent-r.Received, r.Sent)
		}
	})
}
