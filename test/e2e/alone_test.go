package e2e

import (
	"os"
	"testing"
	"time"
)

// All daemons are dead for ten minutes: the wires rekey among themselves, five times at least, and no packet is lost.
func TestTunnelsRekeyWithoutDaemons(t *testing.T) {
	if os.Getenv("WEFT_TEST_LONG") == "" {
		t.Skip("takes ten minutes; make test-long runs it")
	}
	s := tell(t)
	s.form()
	pods := s.pods()
	s.connected(pods)
	watch := s.watch(s.pools()...)
	for _, m := range s.machines {
		s.must(m.Kill())
	}
	flood := s.flood(pods[0].Host, pods[1].Addrs[0].String(), 10*time.Minute)
	if lost, text := flood(); lost != 0 {
		s.Errorf("lost %d packets: %s", lost, text)
	}
	for _, m := range s.machines {
		s.must(m.Up())
	}
	s.whole()
	st, err := s.a.Status()
	s.must(err)
	for _, p := range st.Peers {
		if p.KeyAgeS < 0 || p.KeyAgeS > 180 {
			s.Errorf("the key with %s is %d s old", p.Name, p.KeyAgeS)
		}
	}
	s.connected(pods)
	s.sealed(watch)
}
