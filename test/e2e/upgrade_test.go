package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weft/test/cluster"
	"weft/test/netlab"
)

// Another build of weft takes the place of the running one: the daemon follows the old one, then exchanges the data plane.
// The devices of all transports stay, packets wait in them, sessions are made anew, and nothing is in clear.
func TestUpgradeExchangesTheDataPlane(t *testing.T) {
	long(t)
	next := filepath.Join(t.TempDir(), "weft")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-X main.release=v9.9.9",
		"-o", next, "weft/cmd/weft")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build another weft: %v\n%s", err, out)
	}
	t.Run("from", func(t *testing.T) { // so that the program is there until all stories are told
		each(t, func(s *story, w way) {
			watch := s.lab.CaptureAll(outer(func(h netlab.Header) bool { // outside of tunnels
				return slices.ContainsFunc([]netip.Addr{h.Src, h.Dst}, func(a netip.Addr) bool { return pool4.Contains(a) || pool6.Contains(a) })
			}))
			s.form(append(w.args, "--pool", pool4.String(), "--pool6", pool6.String())...)
			pods := s.pods()
			s.by(w.name)
			tr := s.transfer(pods[0], pods[1], pods[1].Addrs[0])
			s.flows(tr, 1<<20)
			for _, m := range s.machines {
				result := s.pinging(pods[0], pods[1], 200)
				tr.stall()
				wire, device := m.Wire(), s.linkNumber(m, w.device)
				s.must(m.Kill())
				m.Weft = next
				s.must(m.Up(w.args...))
				s.must(cluster.Poll(s.within(startPatience), func() error {
					if now := m.Wire(); now == 0 || now == wire {
						return fmt.Errorf("the data plane of %s is process %d still", m, now)
					}
					return nil
				}))
				s.flows(tr, 4<<20)
				r := result()
				s.Logf("data plane of %s exchanged: %d of %d pings lost, longest gap %.2f s, the connection paused %.2f s (bar: 2 s)",
					m, r.Sent-r.Received, r.Sent, r.LongestGap, tr.stall().Seconds())
				if now := s.linkNumber(m, w.device); now != device {
					s.Errorf("%s of %s was device %s and is %s", w.device, m, device, now)
				}
			}
			s.whole()
			s.connected(pods)
			s.finish(tr)
			s.sealed(watch)
		})
	})
}

// linkNumber is a network device's number, which a new one of the same name has not.
func (s *story) linkNumber(m *cluster.Machine, device string) string {
	s.Helper()
	out, err := m.Exec("ip", "-o", "link", "show", device)
	s.must(err)
	number, _, _ := strings.Cut(out, ":")
	return number
}
