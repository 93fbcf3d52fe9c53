package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"weft/test/cluster"
)

// Twenty pods come and go on a machine: its own devices are no change of the network. What it tells others about itself,
// its addresses among it, stays as it was to the byte, and nobody's way to it is left. An address of its own is told.
func TestPodsAreNoChangeOfTheNetwork(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.form()
	pods := s.pods()
	s.connected(pods)
	said := func() []byte { // the daemon's own record, as last signed
		b, err := os.ReadFile(filepath.Join(s.a.State(), "self"))
		s.must(err)
		return b
	}
	before := s.calm(said)
	ways := s.ways(s.b, s.a)

	const many = 20
	var come []*cluster.Pod
	for i := range many {
		p, err := s.a.Attach(fmt.Sprint("guest", i))
		s.must(err)
		come = append(come, p)
	}
	s.must(come[0].WaitPing(s.within(patience), pods[1].Addrs[0]))
	for _, p := range come {
		s.must(p.Detach())
	}
	if after := s.calm(said); !bytes.Equal(before, after) {
		t.Error("a new record was signed although only pods came and went")
	}
	if now := s.ways(s.b, s.a); now != ways {
		t.Errorf("b reached a by %s, and by %s after pods came and went", ways, now)
	}

	// The same look sees what does count.
	s.a.AddAddr("eth0", "198.18.1.77/24")
	s.must(cluster.Poll(s.within(patience), func() error {
		if bytes.Equal(before, said()) {
			return fmt.Errorf("the address that a got is not in its record")
		}
		return nil
	}))
}

// calm waits until what f reads has been the same for longer than a daemon takes to look at its addresses, twice.
func (s *story) calm(f func() []byte) []byte {
	s.Helper()
	const look = 12 * time.Second
	last, since := f(), time.Now()
	s.must(cluster.Poll(s.within(startPatience), func() error {
		if now := f(); !bytes.Equal(now, last) {
			last, since = now, time.Now()
		}
		if time.Since(since) < look {
			return fmt.Errorf("it has changed within %v", look)
		}
		return nil
	}))
	return last
}

// ways is how a machine reaches another.
func (s *story) ways(m, other *cluster.Machine) string {
	s.Helper()
	st, err := m.Status()
	s.must(err)
	p := peerOf(st, other.Name())
	return fmt.Sprintf("%s %s %v, mtu %d", p.Transport, p.Path, p.Endpoint, p.MTU)
}
