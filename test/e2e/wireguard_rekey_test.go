package e2e

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"weft/router/wireguard"
	"weft/test/cluster"
)

// WireGuard makes new session keys after 120 s. Under a flood of pings nothing is lost when it does.
func TestWireGuardRekeysUnderAFlood(t *testing.T) {
	needWireGuard(t)
	long(t)
	s := tell(t)
	s.machines = s.machines[:2]
	s.form()
	pods := s.pods()
	s.by(wireguard.Name)
	s.connected(pods)
	handshake := func() (newest time.Time) {
		for _, p := range s.device(s.a).Peers {
			newest = p.Handshake
		}
		return newest
	}
	first := handshake()
	c := pods[0].Command(programs.Probe, "flood", "-json", "-rate", "100", "-for", "10m", "-w", "5s", pods[1].Addrs[0].String()).Quiet()
	s.must(c.Start())
	// The echoes of the tunnel's own test keep the session in use, so the first handshake may be old already.
	for range 2 {
		was := handshake()
		s.must(cluster.Poll(s.within(4*time.Minute), func() error {
			if handshake().Equal(was) {
				return errors.New("no new handshake")
			}
			return nil
		}))
		t.Logf("new session keys %.0f s after the first", handshake().Sub(first).Seconds())
	}
	s.must(pods[0].WaitPing(s.within(patience), pods[1].Addrs[0]))
	_ = c.Stop(20 * time.Second)
	var r struct {
		Sent, Received uint64
		LongestGap     float64 `json:"longest_gap"`
	}
	s.must(json.Unmarshal([]byte(c.Stdout()), &r))
	t.Logf("%d pings, %d lost, longest gap %.3f s", r.Sent, r.Sent-r.Received, r.LongestGap)
	if r.Sent != r.Received {
		t.Errorf("%d of %d pings were lost while keys changed", r.Sent-r.Received, r.Sent)
	}
}
