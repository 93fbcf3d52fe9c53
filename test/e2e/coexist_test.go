package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/test/cluster"
)

// needs ends the test where a program is missing.
func needs(t *testing.T, apt string, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("%s is missing. Try: apt-get install --no-install-recommends %s", p, apt)
		}
	}
}

// run is a command of root's on a machine, with its input, that must succeed.
func (s *story) run(m *cluster.Machine, in, program string, args ...string) string {
	s.Helper()
	c := m.Command(program, args...).In(in).Quiet()
	if err := c.Run(); err != nil {
		s.Fatalf("%s %v on %s: %v", program, args, m, err)
	}
	return c.Stdout()
}

// What others put into the kernel's packet filters: an administrator's nftables, a firewall manager that owns a table and
// loads it as a whole, dockerd with the iptables of today, and somebody's old script with those of the past.
const (
	adminRules = `table inet corp {
	set admins { type ipv4_addr; elements = { 203.0.113.10 } }
	chain input { type filter hook input priority 0; policy accept;
		ct state invalid drop
		ip saddr @admins tcp dport 22 accept
		tcp dport 22 drop
	}
	chain forward { type filter hook forward priority 0; policy accept; ct state invalid drop; }
	chain output { type filter hook output priority 0; policy accept; udp dport 9999 drop; }
}
`
	// Loaded as firewalld does: its own table away and made anew, in one transaction.
	managedRules = `table inet firewalld
delete table inet firewalld
table inet firewalld {
	chain filter_INPUT { type filter hook input priority filter + 10; policy accept;
		ct state { established, related } accept
		iifname "lo" accept
		ct state invalid drop
		jump zone_public
	}
	chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept; ct state { established, related } accept; }
	chain nat_POSTROUTING { type nat hook postrouting priority srcnat + 10; policy accept; ip saddr 192.168.77.0/24 masquerade; }
	chain zone_public { udp dport 6783-6785 accept
		tcp dport { 22, 6783 } accept
		tcp dport 3306 reject
	}
}
`
	dockerFilter = `*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-USER -j RETURN
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
COMMIT
`
	legacyRules = `*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p tcp -m tcp --dport 23 -j DROP
-A FORWARD -s 192.0.2.0/24 -j DROP
COMMIT
`
)

// firewall gives a machine all of them, and Docker's bridge.
func (s *story) firewall(m *cluster.Machine) {
	s.Helper()
	s.run(m, "", "ip", "link", "add", "docker0", "type", "bridge")
	s.run(m, "", "ip", "addr", "add", "172.17.0.1/16", "dev", "docker0")
	s.run(m, "", "ip", "link", "set", "docker0", "up")
	s.run(m, adminRules, "nft", "-f", "-")
	s.run(m, managedRules, "nft", "-f", "-")
	s.run(m, dockerFilter, "iptables-nft-restore")
	s.run(m, legacyRules, "iptables-legacy-restore")
}

var counted = regexp.MustCompile(`counter packets \d+ bytes \d+|\[\d+:\d+\]|^#.*|expires \w+|\w+_timer +[\d.]+`)

// theirs is what others have in the packet filters; weft's table, and its chain behind Docker's, are left out.
func (s *story) theirs(m *cluster.Machine) string {
	s.Helper()
	var out []string
	for _, table := range []string{"inet corp", "inet firewalld", "ip filter", "ip nat"} {
		out = append(out, s.run(m, "", "nft", append([]string{"list", "table"}, strings.Fields(table)...)...))
	}
	out = append(out, s.run(m, "", "iptables-legacy-save"))
	var lines []string
	inWeft := false
	for line := range strings.Lines(strings.Join(out, "\n")) {
		line = counted.ReplaceAllString(strings.TrimRight(line, "\n"), "")
		switch {
		case strings.TrimSpace(line) == "chain WEFT {":
			inWeft = true
		case inWeft:
			inWeft = strings.TrimSpace(line) != "}"
		case strings.Contains(line, "jump WEFT"), strings.TrimSpace(line) == "":
		default:
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

// table is weft's table as nft shows it.
func (s *story) table(m *cluster.Machine) string {
	s.Helper()
	return counted.ReplaceAllString(s.run(m, "", "nft", "list", "table", "inet", "weft"), "")
}

// Other programs' firewalls stand beside weft's: neither touches the other's rules, whoever comes first and whatever is loaded
// anew, and pods' packets pass through all of it without loss.
func TestOtherFirewallsStayAndDoNotDisturb(t *testing.T) {
	t.Parallel() // it mostly waits
	needs(t, "nftables iptables iproute2", "nft", "iptables-nft-restore", "iptables-legacy-restore", "ip")
	s := tell(t)
	s.machines = s.machines[:2]
	s.firewall(s.a) // before weft
	before := s.theirs(s.a)
	s.form()
	pods := s.pods()
	s.must(pods[0].WaitPing(s.within(startPatience), pods[1].Addrs[0]))
	s.connected(pods)
	s.firewall(s.b) // after it
	s.must(pods[0].WaitPing(s.within(startPatience), pods[1].Addrs[0]))
	if now := s.theirs(s.a); now != before {
		t.Errorf("weft changed what others have:\n%s", differing(before, now))
	}
	ours := s.still(func() string { return s.table(s.a) })

	// Everything is loaded anew, several times, by their owners; nothing is lost meanwhile.
	f := s.floodPods(pods[0], pods[1].Addrs[0], 100, time.Minute)
	for range 3 {
		s.run(s.a, managedRules, "nft", "-f", "-")
		s.run(s.a, "flush table inet corp\ndelete table inet corp\n"+adminRules, "nft", "-f", "-")
		s.run(s.a, legacyRules, "iptables-legacy-restore")
		s.run(s.a, "", "iptables-nft", "-A", "DOCKER", "-d", "172.17.0.2/32", "!", "-i", "docker0", "-j", "ACCEPT")
		s.run(s.a, "", "iptables-nft", "-D", "DOCKER", "-d", "172.17.0.2/32", "!", "-i", "docker0", "-j", "ACCEPT")
	}
	if said := f(); !strings.Contains(said, "lost 0,") {
		t.Errorf("while others loaded their rules anew packets were lost: %s", said)
	}
	if now := s.theirs(s.a); now != before {
		t.Errorf("others have:\n%s", differing(before, now))
	}
	if now := s.table(s.a); now != ours {
		t.Errorf("weft has:\n%s", differing(ours, now))
	}

	// An administrator saves the whole ruleset and loads it again, as nftables.service does: nft must be able to read what it
	// wrote of weft, and weft brings its own part back to what it was.
	saved := s.run(s.a, "", "nft", "list", "ruleset")
	s.run(s.a, "flush ruleset\n"+strings.ReplaceAll(saved, "# Warning", "# warning"), "nft", "-f", "-")
	s.must(cluster.Poll(s.within(patience), func() error {
		if now := s.table(s.a); now != ours {
			return fmt.Errorf("weft's table is not as it was:\n%s", differing(ours, now))
		}
		return nil
	}))
	s.connected(pods)
	if now := s.theirs(s.a); now != before {
		t.Errorf("after a reload of all others have:\n%s", differing(before, now))
	}
}

// still is what f shows once it has shown the same for a while: kernels and daemons finish some things a moment later.
func (s *story) still(f func() string) string {
	s.Helper()
	const while = 2 * time.Second
	last, since := f(), time.Now()
	s.must(cluster.Poll(s.within(startPatience), func() error {
		if now := f(); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) < while {
			return fmt.Errorf("it has changed within %v", while)
		}
		return nil
	}))
	return last
}

// volatile are values that change by themselves, or that the kernel counts for the whole machine.
var volatile = regexp.MustCompile(`nf_conntrack_count|nf_conntrack_max|nf_conntrack_buckets|/random/|neigh/default/gc_|tcp_fastopen_key|` +
	`/stable_secret|route/flush|ipv6/addrconf|ipfrag_secret|/tcp_mem|/udp_mem|ipv4/fib_notify|nf_conntrack_expect_max|netfilter/nf_conntrack_`)

// portrait is all that weft might have changed of a machine's network: devices, addresses, routes, rules, filters, sysctls.
func (s *story) portrait(m *cluster.Machine) string {
	s.Helper()
	var b strings.Builder
	for _, args := range [][]string{
		{"ip", "-d", "link"},
		{"ip", "addr"},
		{"ip", "-4", "route", "show", "table", "all"},
		{"ip", "-6", "route", "show", "table", "all"},
		{"ip", "-4", "rule"},
		{"ip", "-6", "rule"},
		{"nft", "list", "ruleset"},
		{"iptables-legacy-save"},
	} {
		out := counted.ReplaceAllString(s.run(m, "", args[0], args[1:]...), "")
		lines := slices.DeleteFunc(strings.Split(out, "\n"), func(l string) bool { return strings.TrimSpace(l) == "" || l[0] == '#' })
		fmt.Fprintf(&b, "== %s\n%s\n", strings.Join(args, " "), strings.Join(lines, "\n"))
	}
	b.WriteString("== sysctls\n")
	s.must(m.Do(func() error {
		return filepath.WalkDir("/proc/sys/net", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || volatile.MatchString(path) {
				return nil //nolint:nilerr // what cannot be read is not weft's
			}
			if v, err := os.ReadFile(path); err == nil {
				fmt.Fprintf(&b, "%s = %s\n", strings.TrimPrefix(path, "/proc/sys/"), strings.TrimSpace(string(v)))
			}
			return nil
		})
	}))
	return b.String()
}

// differing lists the lines that only one of two portraits has.
func differing(before, after string) string {
	was, is := strings.Split(before, "\n"), strings.Split(after, "\n")
	var b strings.Builder
	for _, l := range was {
		if !slices.Contains(is, l) {
			fmt.Fprintln(&b, "-", l)
		}
	}
	for _, l := range is {
		if !slices.Contains(was, l) {
			fmt.Fprintln(&b, "+", l)
		}
	}
	return b.String()
}

// A machine that had weft, pods, a client and every transport is as before once weft is purged: devices, addresses, routes,
// rules, firewalls, sysctls, files.
func TestPurgeLeavesTheMachineAsItWas(t *testing.T) {
	needs(t, "nftables iptables iproute2", "nft", "iptables-nft-restore", "iptables-legacy-restore", "ip")
	s := tell(t)
	s.machines = s.machines[:2]
	s.firewall(s.b)
	before := s.still(func() string { return s.portrait(s.b) })
	trust := []string{"--trusted-subnets", "198.18.0.0/16,2001:db8::/32", "--transport", "vxlan,vxlan6,wireguard,wireguard-user,sleeve"}
	s.form(trust...)
	pods := s.pods()
	s.by("vxlan")
	s.connected(pods)
	s.must(s.b.Type("client", "add", "laptop").Failure())
	s.must(cluster.Poll(s.within(startPatience), func() error { // a portrait that shows them would show what is left of them, too
		during := s.portrait(s.b)
		for _, want := range []string{"weft-vx:", "weft-vx6:", "weft-wu:", "weft-sl:", "wf-clients:", "table inet weft", "chain WEFT"} {
			if !strings.Contains(during, want) {
				return fmt.Errorf("the portrait of a machine with weft shows no %q", want)
			}
		}
		return nil
	}))
	s.must(s.b.Kill()) // a life with a crash in it
	s.must(s.b.KillWire(s.within(patience)))
	s.must(s.b.Up(trust...))
	s.whole()
	s.must(pods[1].Detach())
	s.must(s.b.Type("client", "remove", "laptop").Failure())
	s.must(s.b.Type("leave", "--purge").Failure())
	s.must(cluster.Poll(s.within(patience), func() error {
		select {
		case <-s.b.Daemon.Done():
		default:
			return fmt.Errorf("the daemon runs still")
		}
		if d := differing(before, s.portrait(s.b)); d != "" {
			return fmt.Errorf("the machine is not as it was:\n%s", d)
		}
		if s.b.Wire() != 0 {
			return fmt.Errorf("a wire is left")
		}
		return nil
	}))
	if _, err := os.Stat(s.b.State()); !os.IsNotExist(err) {
		t.Errorf("the state directory is left: %v", err)
	}
	if slices.Contains(pods[1].Devices(), "eth0") {
		t.Error("the pod still has its interface")
	}
}
