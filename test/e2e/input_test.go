package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
)

// givesUp checks that a daemon does not start, and says why: exit code, and words in what it wrote last.
func (s *story) givesUp(m *cluster.Machine, code int, words ...string) {
	s.Helper()
	select {
	case <-m.Daemon.Done():
	case <-time.After(patience):
		s.Errorf("the daemon on %s did not give up; want %q", m, words)
		m.Daemon.Kill()
		return
	}
	lines := strings.Split(strings.TrimSpace(m.Daemon.Stderr()), "\n")
	last := lines[len(lines)-1]
	if got := m.Daemon.ExitCode(); got != code || !strings.HasPrefix(last, "weft: ") {
		s.Errorf("exit %d, want %d: %s", got, code, last)
	}
	for _, w := range words {
		if !strings.Contains(last, w) {
			s.Errorf("it does not say %q: %s", w, last)
		}
	}
	s.Logf("%s", last)
}

// What cannot work is refused at the start, with the reason and what to type.
func TestBadInputIsRefusedInWords(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	m := s.a

	config := filepath.Join(m.Dir(), "weft.yaml")
	s.must(os.WriteFile(config, []byte("name: a\nnonsense: 1\n"), 0o600))
	s.must(m.Up("--config", config))
	s.givesUp(m, control.ExitUsage, "nonsense")
	if r := m.Type("config", "check", "--config", config); r.Code != control.ExitFailed || !strings.Contains(r.Stderr, "nonsense") {
		t.Errorf("config check: exit %d: %s", r.Code, r.Stderr)
	}
	s.must(os.WriteFile(config, []byte("pool: [10.32.0.0/33]\n"), 0o600))
	s.must(m.Up("--config", config))
	s.givesUp(m, control.ExitUsage, "pool", "10.32.0.0/33")

	// A pool that this machine uses.
	s.must(m.Up("--init", "--pool", "198.18.0.0/16"))
	s.givesUp(m, control.ExitFailed, "pool", "198.18.1.", "--pool")
	m.Route(netip.MustParsePrefix("10.77.0.0/24"), s.sites.Router.Addr4())
	s.must(m.Up("--init", "--pool", "10.77.0.0/16"))
	s.givesUp(m, control.ExitFailed, "10.77.0.0/24")

	// Ports that others have.
	udp, err := m.ListenPacket("udp", ":6783")
	s.must(err)
	s.must(m.Up("--init"))
	s.givesUp(m, control.ExitFailed, "6783", "--listen")
	s.must(udp.Close())
	tcp, err := m.Listen("tcp", ":6783")
	s.must(err)
	s.must(m.Up())
	s.givesUp(m, control.ExitFailed, "6783", "--listen")
	s.must(tcp.Close())
	tcp, err = m.Listen("tcp", "127.0.0.1:6782")
	s.must(err)
	s.must(m.Up())
	s.givesUp(m, control.ExitFailed, "6782", "--metrics-listen")
	s.must(tcp.Close())

	// Two daemons on one state.
	s.must(m.Up("--init"))
	_, err = m.WaitReady(s.within(patience), 1)
	s.must(err)
	first := m.Daemon
	s.must(m.Up())
	s.givesUp(m, control.ExitFailed, "already running", "--state")
	m.Daemon = first
	_, err = m.WaitReady(s.within(patience), 1)
	s.must(err)

	// Without the rights.
	nobody := m.Command("setpriv", "--reuid=65534", "--clear-groups", m.Weft, "up", "--state", "/tmp/weft-nobody", "--socket", "/tmp/weft-nobody.sock").Quiet()
	s.must(nobody.Start())
	<-nobody.Done()
	if nobody.ExitCode() != control.ExitFailed || !strings.Contains(nobody.Stderr(), "sudo weft up") {
		t.Errorf("without rights: exit %d: %s", nobody.ExitCode(), nobody.Stderr())
	}
}

// A joiner that already uses the cluster's addresses is refused, and its admission is not lost.
func TestJoinerWithAnOverlap(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.machines = s.machines[:2]
	token := s.founded("--pool", "10.32.0.0/12")
	s.b.AddAddr("eth0", "10.33.0.1/24")
	s.must(s.b.Up())
	s.serving(s.b)
	_, err := s.b.CLI("join", token)
	s.refused(err, "pool", "10.33.0.", "--accept-overlap")
	s.serving(s.b)
	s.b.DelAddr("eth0", "10.33.0.1/24")
	// A wider route is no reason to refuse.
	s.b.Route(netip.MustParsePrefix("10.0.0.0/8"), netip.MustParseAddr("198.18.2.1"))
	_, err = s.b.CLI("join", token)
	s.must(err)
	s.whole()
	s.connected(s.pods())
	st, err := s.a.Status()
	s.must(err)
	if st.Cluster.Members != 2 {
		t.Errorf("%d members", st.Cluster.Members)
	}
}

// Machines without IPv6 work, over IPv4 alone, and say so.
func TestKernelWithoutIPv6(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.machines = s.machines[:2]
	for _, k := range []string{"all", "default"} {
		s.b.Sysctl("net.ipv6.conf."+k+".disable_ipv6", "1")
	}
	s.form()
	pods := s.pods()
	s.must(pods[0].WaitPing(s.within(patience), pods[1].Addrs[0]))
	s.must(pods[1].WaitPing(s.within(patience), pods[0].Addrs[0]))
	if len(pods[1].Addrs) != 1 {
		t.Errorf("a pod there has %v", pods[1].Addrs)
	}
	out, err := s.b.CLI("status")
	s.must(err)
	if !strings.Contains(out, "IPv4 only") {
		t.Errorf("the status does not say so:\n%s", out)
	}
}

// A machine without /dev/net/tun starts, says what it lacks, and serves its own pods.
func TestNoTunDevice(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.machines = s.machines[:2]
	token := s.founded()
	// A mount of its own over /dev/net, under the daemon alone.
	s.b.Daemon = s.b.Command("sh", "-c", `mount -t tmpfs none /dev/net && exec "$@"`, "sh", s.b.Weft, "up", "--name", "b", "--state", s.b.State(),
		"--socket", filepath.Join(s.b.Dir(), "weft.sock"), "--join", token).PrivateMounts()
	s.must(s.b.Daemon.Start())
	_, err := s.b.WaitFor(s.within(patience), func(st control.Status) error {
		for _, tr := range st.Transports {
			if tr.Name == "sleeve" && !tr.Available && strings.Contains(tr.Reason, "tun") {
				return nil
			}
		}
		return fmt.Errorf("it does not say that it has no sleeve: %+v (%s)", st.Transports, st.Node.Reason)
	})
	s.must(err)
	_, err = s.b.WaitReady(s.within(patience), 1)
	s.must(err)
	doctor := s.b.Type("doctor")
	if !strings.Contains(doctor.Stdout, "modprobe tun") {
		t.Errorf("weft doctor says\n%s", doctor.Stdout)
	}
}
