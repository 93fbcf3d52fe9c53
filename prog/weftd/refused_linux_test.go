package weftd

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"weft/prog/control"
	"weft/test/netlab"
)

// TestRefusals: what a daemon says that cannot start, to the last word. None of them leaves a trace on the machine.
func TestRefusals(t *testing.T) {
	m := machines(t, 1)[0]
	before := m.Devices()
	holder := func(network, address string) *netlab.Cmd {
		t.Helper()
		c := m.Command(testBinary(t), "hold", network, address)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.WaitOutput(t.Context(), "holds"); err != nil {
			t.Fatal(err)
		}
		return c
	}
	file := filepath.Join(m.Dir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		network  string // of a port that another program has
		address  string
		settings []string
		want     string // PROGRAM and PID stand for the other program's
	}{
		{
			"the metrics port is taken", "tcp", "127.0.0.1:6782", nil,
			"weft: cannot open TCP port 6782 (PROGRAM (pid PID) has it). Stop that program, or choose another port with --metrics-listen",
		},
		{
			"the weft port is taken over UDP", "udp", "0.0.0.0:6783", nil,
			"weft: cannot open UDP port 6783 (PROGRAM (pid PID) has it). Stop that program, or choose another port with --listen",
		},
		{
			"the weft port is taken over TCP", "tcp", "[::]:6783", nil,
			"weft: cannot open TCP port 6783 (PROGRAM (pid PID) has it). Stop that program, or choose another port with --listen",
		},
		{
			"the address is not ours", "", "",
			[]string{"listen=198.51.100.9:6783"},
			"weft: cannot open UDP port 6783 (198.51.100.9 is no address of this machine). Choose another address with --listen",
		},
		{
			"the state directory is a file", "", "",
			[]string{"state=" + file},
			"weft: cannot make the state directory " + file + " (not a directory). Choose another one: --state DIR",
		},
		{
			"the state directory is below a file", "", "",
			[]string{"state=" + file + "/state"},
			"weft: cannot make the state directory " + file + "/state (not a directory). Choose another one: --state DIR",
		},
		{
			"the pool holds our address", "", "",
			[]string{"init=true", "pool=192.0.2.0/24"},
			"weft: this machine already uses addresses of pool 192.0.2.0/24 (the address 192.0.2.1 of eth0 lies inside it). " +
				"Choose another one: --pool CIDR; or --accept-overlap if you know that it does no harm",
		},
		{
			"the pool is too small", "", "",
			[]string{"init=true", "pool=10.9.0.0/24", "expect-nodes=100"},
			"weft: pool 10.9.0.0/24 is too small for 100 nodes (it has 64 blocks to hand out, and needs twice as many as nodes). Choose a wider --pool, such as 10.9.0.0/18",
		},
		{
			"the token is none", "", "", []string{"join=hello"}, "weft: ",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := c.want
			if c.network != "" {
				other := holder(c.network, c.address)
				defer other.Kill()
				want = strings.NewReplacer("PROGRAM", filepath.Base(testBinary(t)), "PID", fmt.Sprint(other.Pid())).Replace(want)
			}
			got := m.refused(m.command(c.settings...))
			if got != want && (want != "weft: " || !strings.HasPrefix(got, want)) {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
	if got := m.Devices(); len(got) != len(before) {
		t.Errorf("devices %v, before %v", got, before)
	}
	if got := must(m.Exec("ip", "route"))(t); strings.Contains(got, "unreachable") {
		t.Errorf("routes are left:\n%s", got)
	}
}

// TestStateNobodyCanUse: states of a newer weft, of two nodes, and torn ones are refused, and stay as they are.
func TestStateNobodyCanUse(t *testing.T) {
	ms := machines(t, 2)
	for _, m := range ms {
		m.found("metrics-listen=none")
		if err := m.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.gone()
	}
	m := ms[0]
	file := filepath.Join(m.state(), fileMembership)
	good := must(os.ReadFile(file))(t)
	other := must(os.ReadFile(filepath.Join(ms[1].state(), fileMembership)))(t)
	for name, c := range map[string]struct {
		membership []byte
		want       string
	}{
		"newer": {append([]byte{0x20}, good[1:]...), `^weft: this state was written by a newer weft \(.*\)\. Start that version again; ` +
			`to begin a new life instead, move the state directory away$`},
		"mixed": {other, `^weft: .*/membership is the certificate of \w+, and .*/identity.key the key of \w+: the folder was mixed from two nodes$`},
		"torn":  {good[:len(good)/2], `^weft: read .*/membership: `},
	} {
		if err := os.WriteFile(file, c.membership, 0o600); err != nil {
			t.Fatal(err)
		}
		got := m.refused(m.command())
		if !regexp.MustCompile(c.want).MatchString(got) {
			t.Errorf("%s: %s", name, got)
		}
	}
	if err := errors.Join(os.WriteFile(file, good, 0o600), os.Rename(filepath.Join(m.state(), fileDB), file+".away")); err != nil {
		t.Fatal(err)
	}
	if got := m.refused(m.command()); !strings.Contains(got, "weft.db is gone, the book of this node's addresses") {
		t.Errorf("lost book: %s", got)
	}
	if err := os.Rename(file+".away", filepath.Join(m.state(), fileDB)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	m.up()
	m.ready(1)
}

// TestForeignWire: a data plane whose state is gone keeps the port, and is named.
func TestForeignWire(t *testing.T) {
	m := machines(t, 1)[0]
	m.found()
	m.killDaemon()
	got := m.refused(m.command("state=" + m.state() + "2"))
	want := fmt.Sprintf("weft: cannot open UDP port 6783 (weft (pid %d) has it). It is a data plane whose state directory is another, "+
		"or is gone. Try: kill %[1]d", m.wire())
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestPools: a wider route is worth a word, one to the pool is refused, and both may be accepted.
func TestPools(t *testing.T) {
	m := machines(t, 1)[0]
	m.up()
	init := func(pool string, accept bool) (control.InitReply, error) {
		return m.Init(t.Context(), control.InitRequest{Pools: []netip.Prefix{netip.MustParsePrefix(pool)}, AcceptOverlap: accept})
	}
	m.Route(netip.MustParsePrefix("10.0.0.0/8"), netip.MustParseAddr("192.0.2.200"))
	m.Route(netip.MustParsePrefix("10.50.1.0/24"), netip.MustParseAddr("192.0.2.200"))
	_, err := init("10.50.0.0/16", false)
	if want := `^this machine already uses addresses of pool 10\.50\.0\.0/16 \(the route "10\.50\.1\.0/24.*" leads there\)\. ` +
		`Choose another one: --pool CIDR; or --accept-overlap if you know that it does no harm$`; err == nil || !regexp.MustCompile(want).MatchString(err.Error()) {
		t.Errorf("a route inside: %v", err)
	}
	reply, err := init("10.50.0.0/16", true)
	if err != nil || len(reply.Notes) != 1 || !strings.HasPrefix(reply.Notes[0], "Pool 10.50.0.0/16 is used on this machine already, and that was accepted: ") {
		t.Errorf("accepted: %q %v", reply.Notes, err)
	}
	other := machineOn(t, m.Lab().Host("n9"))
	other.Lab().Link(other.Port("eth0", "192.0.2.9/24"), m.Lab().Switch("lan2").Port("p9"))
	other.Route(netip.MustParsePrefix("10.0.0.0/8"), netip.MustParseAddr("192.0.2.200"))
	other.up()
	reply, err = other.Init(t.Context(), control.InitRequest{})
	if want := `covers pool 10.32.0.0/12; weft's routes are narrower and win`; err != nil || len(reply.Notes) != 1 || !strings.Contains(reply.Notes[0], want) {
		t.Errorf("a wider route: %q %v", reply.Notes, err)
	}
}

// TestWithoutTUN: the machine cannot have the sleeve, says so, and is a member all the same.
func TestWithoutTUN(t *testing.T) {
	m := machines(t, 1)[0]
	m.start(m.command("init=true").Env("WITHOUT=tun").PrivateMounts())
	s := m.ready(1)
	for _, tr := range s.Transports {
		if want := "TUN devices: not supported on this machine (no such file or directory). Try: modprobe tun, or give the container /dev/net/tun"; tr.Name == "sleeve" &&
			(tr.Available || tr.Reason != want) {
			t.Errorf("sleeve: %+v", tr)
		}
	}
	doc := must(m.Doctor(t.Context(), control.DoctorRequest{}))(t)
	if c := doc.Checks[0]; c.Name != "tun" || c.State != control.CheckFailed {
		t.Errorf("doctor: %+v", c)
	}
}

// TestWithoutIPv6: switched off by sysctl, and absent from the kernel as far as sockets tell. Both are members with IPv4
// alone, and say so.
func TestWithoutIPv6(t *testing.T) {
	for _, how := range []string{"sysctl", "kernel"} {
		t.Run(how, func(t *testing.T) {
			ms := machines(t, 2)
			a, b := ms[0], ms[1]
			command := func(m *machine, settings ...string) *netlab.Cmd {
				c := m.command(settings...)
				if how == "kernel" {
					c.Env("WITHOUT=ipv6").PrivateMounts()
				} else {
					for _, key := range []string{"all", "default", "eth0"} {
						m.Sysctl("net.ipv6.conf."+key+".disable_ipv6", "1")
					}
				}
				return c
			}
			a.start(command(a, "init=true"))
			line := must(a.daemon.WaitOutput(t.Context(), `founded (weft1\S+)`))(t)
			b.start(command(b, "join="+line[1]))
			a.ready(2)
			s := b.ready(2)
			if len(s.Warnings) != 1 || !strings.HasPrefix(s.Warnings[0], "IPv4 only: ") {
				t.Errorf("warnings %q", s.Warnings)
			}
			if how == "kernel" {
				return // its mounts are its own, so it does not see namespaces that are made later
			}
			p := b.Pod("web")
			got := must(b.Attach(t.Context(), control.AttachRequest{Netns: p.Path()}))(t)
			if len(got.Addresses) != 1 || !got.Addresses[0].Is4() {
				t.Errorf("addresses %v", got.Addresses)
			}
		})
	}
}

// TestNoAddressYet: a founder without an address says so, and prints the join line when it has one.
func TestNoAddressYet(t *testing.T) {
	t.Parallel()
	lab := netlab.New(t)
	m := machineOn(t, lab.Host("n1"))
	m.up("init=true")
	m.ready(1)
	got := must(m.daemon.WaitOutput(t.Context(), `founded (.*)`))(t)
	if want := " " + noAddressNote; got[1] != want {
		t.Errorf("got %q, want %q", got[1], want)
	}
	if _, err := m.TokenCreate(t.Context(), control.TokenRequest{}); err == nil || err.Error() !=
		"this machine has no address that others could join at. Give it one, or name one: --advertise ADDR" {
		t.Errorf("a token nobody could use: %v", err)
	}
	lab.Link(m.Port("eth0", "192.0.2.1/24"), lab.Host("n2").Port("eth0", "192.0.2.2/24"))
	must(m.daemon.WaitOutput(t.Context(), `addressed weft1`))(t)
}

// TestDownWithoutDaemon: the wire that a dead daemon left is stopped from outside.
func TestDownWithoutDaemon(t *testing.T) {
	m := machines(t, 1)[0]
	m.found()
	cfg := must(Config{State: m.state(), Socket: m.socket(), Name: "n1"}.Complete())(t)
	if _, err := Down(t.Context(), cfg); control.Explain(err).Code != control.Conflict {
		t.Errorf("beside a daemon: %v", err)
	}
	m.killDaemon()
	if stopped, err := Down(t.Context(), cfg); err != nil || !stopped {
		t.Errorf("got %v %v", stopped, err)
	}
	if m.wire() != 0 {
		t.Error("it runs still")
	}
	if stopped, err := Down(t.Context(), cfg); err != nil || stopped {
		t.Errorf("again: %v %v", stopped, err)
	}
}
