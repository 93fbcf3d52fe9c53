package e2e

import (
	"fmt"
	"testing"
	"time"

	"weft/router/wireguard"
	"weft/test/cluster"
	"weft/test/netlab"
)

// WireGuard in the wire makes new session keys after 120 s. Under a flood of pings nothing is lost when it does, although the
// pair agreed on another secret meanwhile, as it does each day and whenever a daemon starts. Then a daemon and the other end's
// wire are killed at once: the flood goes on, and at no time anything of it is seen on a cable.
func TestUserWireGuardRekeysUnderAFlood(t *testing.T) {
	long(t)
	s := tell(t)
	s.machines = s.machines[:2]
	watched := s.watch(pool4, pool6)
	args := []string{"--transport", wireguard.UserName + ",sleeve"}
	s.form(append(args, "--pool", pool4.String(), "--pool6", pool6.String())...)
	pods := s.pods()
	s.by(wireguard.UserName)
	s.connected(pods)

	age := func() (time.Duration, error) {
		st, err := s.a.Status()
		if err != nil {
			return 0, err
		}
		if len(st.Peers) != 1 || st.Peers[0].Transport != wireguard.UserName || st.Peers[0].KeyAgeS < 0 {
			return 0, fmt.Errorf("no session by %s: %+v", wireguard.UserName, st.Peers)
		}
		return time.Duration(st.Peers[0].KeyAgeS) * time.Second, nil
	}
	const young = 30 * time.Second
	rate := 1000 / netlab.Slow()
	began := time.Now()
	result := s.pinging(pods[0], pods[1], rate)
	was, err := age()
	s.must(err)
	s.must(s.b.Kill())
	s.must(s.b.Up(args...))
	s.whole()
	s.by(wireguard.UserName)
	s.must(cluster.Poll(s.within(4*time.Minute), func() error {
		now, err := age()
		if err == nil && (now > young || time.Since(began)+was < 110*time.Second) {
			err = fmt.Errorf("the session keys are %s old", now.Round(time.Second))
		}
		return err
	}))
	s.Logf("new session keys %.0f s after the first", (time.Since(began) + was).Seconds())
	s.must(pods[0].WaitPing(s.within(patience), pods[1].Addrs[0]))
	r := result()
	s.Logf("%d pings, %d lost, longest gap %.3f s (bar: none lost)", r.Sent, r.Sent-r.Received, r.LongestGap)
	if r.Received < r.Sent {
		s.Errorf("%d of %d pings were lost while keys changed", r.Sent-r.Received, r.Sent)
	}

	result = s.pinging(pods[0], pods[1], rate)
	s.must(s.a.Kill())
	s.must(s.b.KillWire(s.within(patience)))
	s.must(s.a.Up(args...))
	s.whole()
	s.by(wireguard.UserName)
	s.connected(pods)
	r = result()
	s.Logf("a daemon and the other end's wire killed: %d of %d pings lost, longest gap %.2f s", r.Sent-r.Received, r.Sent, r.LongestGap)
	if r.Received == 0 {
		s.Error("no ping was answered")
	}
	s.sealed(watched)
}
