package weftd

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"weft/prog/control"
	"weft/test/netlab"
)

// TestLife is one machine from the first start to the last: waiting, founder, restarted, stopped, gone without a trace.
func TestLife(t *testing.T) {
	m := machines(t, 1)[0]
	before := m.Devices()
	m.up()
	if s := m.wait("waits", func(control.Status) bool { return true }); s.Node.State != control.NodeWaiting {
		t.Errorf("state %s before there is a cluster", s.Node.State)
	}
	if err := m.Client.Ping(t.Context(), control.PingRequest{Peer: "x"}, nil); control.Explain(err).Code != control.NotReady {
		t.Errorf("ping without a cluster: %v", err)
	}
	made := must(m.Init(t.Context(), control.InitRequest{Advertise: []string{"198.51.100.1:7000"}}))(t)
	again := must(m.Init(t.Context(), control.InitRequest{}))(t)
	if made.Existed || !again.Existed || again.Cluster != made.Cluster || again.Token != "" {
		t.Errorf("init twice: %+v, %+v", made, again)
	}
	s := m.ready(1)
	if want := netip.MustParseAddr("198.51.100.1"); s.Node.Underlay[0] != want {
		t.Errorf("underlay %v, want %s first", s.Node.Underlay, want)
	}
	if len(s.Node.Overlay) != 2 || !s.Node.Voter || !s.Node.Issuer || len(s.Warnings) != 0 {
		t.Errorf("a founder alone: %+v %v", s.Node, s.Warnings)
	}

	t.Run("the report holds no secret", func(t *testing.T) { noSecrets(t, m, made.Token) })
	t.Run("a second daemon touches nothing", func(t *testing.T) {
		dir := filepath.Join(m.Dir(), "other")
		got := m.refused(m.Command(testBinary(t), "up", "state="+dir, "socket="+m.socket()))
		if !strings.Contains(got, fmt.Sprintf("weft: weft is already running here (pid %d). Stop it with: weft down", m.daemon.Pid())) {
			t.Error(got)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Error("it made a state directory")
		}
		got = m.refused(m.Command(testBinary(t), "up", "state="+m.state(), "socket="+m.socket()+"2", "metrics-listen=none"))
		if want := "weft: state directory " + m.state() + " is in use by another weft. Is it running? Try: weft status; " +
			"or give this one its own --state and --socket"; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})

	// Stopped by a signal: the wire goes on, and the next daemon takes it over.
	wire := m.wire()
	if wire == 0 {
		t.Fatal("no wire")
	}
	m.stop()
	m.up()
	if s := m.ready(1); s.Cluster.ID != made.Cluster || s.Node.Underlay[0] != netip.MustParseAddr("198.51.100.1") {
		t.Errorf("after a restart: %+v %+v", s.Cluster, s.Node)
	}
	if got := m.wire(); got != wire {
		t.Errorf("wire %d after a restart, %d before", got, wire)
	}

	// Down: no wire is left; what protects is.
	if err := m.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.gone()
	if got := m.wire(); got != 0 {
		t.Error("a wire runs after down")
	}
	if routes := must(m.Exec("ip", "route"))(t); !strings.Contains(routes, "unreachable 10.32.0.0/12") {
		t.Errorf("down took away what protects:\n%s", routes)
	}
	m.up() // at once: Gone means gone
	m.ready(1)

	reply := must(m.Leave(t.Context(), control.LeaveRequest{Purge: true}))(t)
	if want := "This was the only member: the cluster is no more."; len(reply.Notes) != 1 || reply.Notes[0] != want {
		t.Errorf("notes %q", reply.Notes)
	}
	m.gone()
	if left, err := os.ReadDir(m.state()); err == nil {
		t.Errorf("state after purge: %v", left)
	}
	if got := m.Devices(); !slices.Equal(got, before) {
		t.Errorf("devices %v, before weft %v", got, before)
	}
	if routes := must(m.Exec("ip", "route"))(t); strings.Contains(routes, "10.32") {
		t.Errorf("routes are left:\n%s", routes)
	}
}

// stop ends the daemon as systemd does.
func (m *machine) stop() {
	m.t.Helper()
	if err := m.daemon.Stop(patience); err != nil {
		m.t.Fatal(err)
	}
	m.gone()
}

// noSecrets looks for everything that this machine keeps to itself in its report.
func noSecrets(t *testing.T, m *machine, token string) {
	report, err := m.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b := must(json.Marshal(report))(t)
	if len(report.Log) == 0 || len(report.Config) == 0 || len(report.Counters) == 0 {
		t.Errorf("the report is poor: %s", b)
	}
	secrets := map[string][]byte{"token": []byte(token)}
	for _, name := range []string{fileIdentity, fileRoot, fileNoise} {
		pem := must(os.ReadFile(filepath.Join(m.state(), name)))(t)
		parsed := must(parsePEM(pem))(t)
		var raw []byte
		switch k := parsed.(type) {
		case interface{ Seed() []byte }:
			raw = k.Seed()
		case interface{ Bytes() []byte }:
			raw = k.Bytes()
		}
		if len(raw) != 32 {
			t.Fatalf("%s: no key", name)
		}
		secrets[name] = raw
		secrets[name+" as hex"] = []byte(hex.EncodeToString(raw))
		secrets[name+" as base64"] = []byte(base64.StdEncoding.EncodeToString(raw)[:40])
		secrets[name+" as PEM"] = pem[40:80]
	}
	for name, secret := range secrets {
		if strings.Contains(string(b), string(secret)) {
			t.Errorf("%s is in the report", name)
		}
	}
}

// TestNamespaceNames: whatever a namespace is called when it is attached, it is found again under its other names.
func TestNamespaceNames(t *testing.T) {
	m := machines(t, 1)[0]
	m.found()
	pod := func(name string) (p *netlab.Host, path string) {
		p = m.Pod(name)
		sleeper := p.Command("sleep", "1000")
		if err := sleeper.Start(); err != nil {
			t.Fatal(err)
		}
		return p, fmt.Sprintf("/proc/%d/ns/net", sleeper.Pid())
	}
	attach := func(path, name string) control.AttachReply {
		t.Helper()
		return must(m.Attach(t.Context(), control.AttachRequest{Netns: path, Container: name}))(t)
	}
	detach := func(path string, want control.AttachReply) {
		t.Helper()
		got := must(m.Detach(t.Context(), control.DetachRequest{Netns: path}))(t)
		if !slices.Equal(got.Addresses, want.Addresses) {
			t.Errorf("detach %s took back %v, want %v", path, got.Addresses, want.Addresses)
		}
	}
	p, byPID := pod("web")
	one := attach(p.Path(), "")
	if two := attach(byPID, ""); !two.Existed || !slices.Equal(two.Addresses, one.Addresses) {
		t.Errorf("attached by PID it is another pod: %+v, %+v", one, two)
	}
	if list := must(m.IPList(t.Context()))(t); list.Claims[0].Container != filepath.Base(p.Path()) {
		t.Errorf("container %q", list.Claims[0].Container)
	}
	detach(byPID, one)
	detach(p.Path(), control.AttachReply{})

	one = attach(byPID, "")
	if two := attach(p.Path(), ""); !two.Existed {
		t.Errorf("attached by name it is another pod: %+v, %+v", one, two)
	}
	detach(p.Path(), one)

	one = attach(p.Path(), "called-so")
	detach(byPID, one)

	// Another namespace of the same name is not the same pod.
	q, _ := pod("other")
	one = attach(p.Path(), "called-so")
	_, err := m.Attach(t.Context(), control.AttachRequest{Netns: q.Path(), Container: "called-so"})
	if control.Explain(err).Code != control.Conflict {
		t.Errorf("two pods of one name: %v", err)
	}
	// A process that is gone leaves its words.
	short := q.Command("sleep", "1000")
	if err := short.Start(); err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/proc/%d/ns/net", short.Pid())
	two := attach(path, "short-lived")
	short.Kill()
	detach(path, two)
	detach(p.Path(), one)

	if _, err := m.Attach(t.Context(), control.AttachRequest{Netns: m.Path()}); control.Explain(err).Code != control.Conflict {
		t.Errorf("the machine itself: %v", err)
	}
	if _, err := m.Attach(t.Context(), control.AttachRequest{Netns: "/run/netns/none-such"}); err == nil || err.Error() !=
		"there is no namespace /run/netns/none-such (no such file or directory). Try: ip netns list" {
		t.Errorf("no namespace: %v", err)
	}
}

// TestAttachWhileAThreadIsInThePod: the daemon's threads go into pods and come back. Whichever is there just then, also the
// first, by which the kernel names a process's namespace, the pod is a pod and the machine itself is none.
func TestAttachWhileAThreadIsInThePod(t *testing.T) {
	m := machines(t, 1)[0]
	p := m.Pod("web")
	m.start(m.command("init=true").Env("STRAY=" + p.Path()))
	m.ready(1)
	if _, err := m.Attach(t.Context(), control.AttachRequest{Netns: p.Path()}); err != nil {
		t.Errorf("the pod: %v", err)
	}
	if _, err := m.Attach(t.Context(), control.AttachRequest{Netns: m.Path()}); control.Explain(err).Code != control.Conflict {
		t.Errorf("the machine itself: %v", err)
	}
}

// TestTwo is two machines: join, ping, the wire's death, a daemon's death, and leaving a peer that does not answer.
func TestTwo(t *testing.T) {
	ms := machines(t, 2)
	a, b := ms[0], ms[1]
	token := a.found()
	b.up("join=" + token)
	a.ready(2)
	b.ready(2)
	b.wait("is one of two, with nothing to warn of", func(s control.Status) bool { return len(s.Warnings) == 0 && s.Cluster.Members == 2 })
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	for _, m := range ms {
		m.until(ctx, "knows of one token, used once, and of two issuers", func() bool {
			list := must(m.TokenList(ctx))(t)
			return len(list.Tokens) == 1 && list.Tokens[0].Used == 1 && len(must(m.IssuerList(ctx))(t).Issuers) == 2
		})
	}
	ping := func(when string) {
		t.Helper()
		n := 0
		err := a.Client.Ping(t.Context(), control.PingRequest{Peer: "n2", Count: 3, Interval: control.Duration(10e6)}, func(r control.PingReply) error {
			if n++; r.Lost != "" || r.RTTms <= 0 || r.Transport != "sleeve" || r.Path != control.PathDirect || r.Seq != n {
				t.Errorf("%s: reply %+v", when, r)
			}
			return nil
		})
		if err != nil || n != 3 {
			t.Errorf("%s: %d replies, %v", when, n, err)
		}
	}
	reaches := func() bool {
		lost := false
		err := a.Client.Ping(ctx, control.PingRequest{Peer: "n2", Count: 1}, func(r control.PingReply) error { lost = r.Lost != ""; return nil })
		return err == nil && !lost
	}
	a.until(ctx, "knows the other's address", reaches)
	ping("joined")
	doc := must(a.Doctor(t.Context(), control.DoctorRequest{Peer: "n2"}))(t)
	for _, c := range doc.Checks {
		if c.State == control.CheckFailed {
			t.Errorf("doctor: %+v", c)
		}
	}
	issuerRules(t, a, b)

	// The daemon is killed: its wire keeps the session, and the next one takes it as it is.
	wire := b.wire()
	b.killDaemon()
	ping("without a daemon")
	b.up()
	b.ready(2)
	ping("with another daemon")
	if got := b.wire(); got != wire {
		t.Errorf("wire %d after the daemon's death, %d before", got, wire)
	}

	// The wire is killed: the daemon starts another.
	old := b.wire()
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.until(ctx, "has another wire", func() bool { w := b.wire(); return w != 0 && w != old })
	a.ready(2)
	b.ready(2)
	a.until(ctx, "reaches the other again", reaches)
	ping("with another wire")

	// The other one is away: leaving says so, and works.
	a.killDaemon()
	if err := syscall.Kill(a.wire(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	reply := must(b.Leave(t.Context(), control.LeaveRequest{Purge: true}))(t)
	if len(reply.Notes) == 0 {
		t.Error("it says nothing about the member that did not answer")
	}
	b.gone()
	if _, err := os.Stat(b.state()); err == nil {
		t.Error("the state is left")
	}
}

// issuerRules: the root's machine names issuers, the others may not, and one is always left.
func issuerRules(t *testing.T, a, b *machine) {
	refused := func(err error, code control.Code, words string) {
		t.Helper()
		if control.Explain(err).Code != code || !strings.Contains(err.Error(), words) {
			t.Errorf("got %v, want %s and %q", err, code, words)
		}
	}
	refused(b.IssuerRemove(t.Context(), "n1"), control.Denied, "only the machine that holds the root key can change the issuers")
	if err := a.IssuerRemove(t.Context(), "n2"); err != nil {
		t.Fatal(err)
	}
	if err := a.IssuerRemove(t.Context(), "n2"); err != nil {
		t.Errorf("again: %v", err)
	}
	refused(a.IssuerRemove(t.Context(), "n1"), control.Conflict, "n1 is the last issuer")
	b.wait("knows that it is no issuer", func(s control.Status) bool { return !s.Node.Issuer && len(s.Warnings) == 1 })
	_, err := b.TokenCreate(t.Context(), control.TokenRequest{})
	refused(err, control.Denied, "these do: n1). Make the token there, or let this node: weft issuer add n2")
	if err := a.IssuerAdd(t.Context(), "n2"); err != nil {
		t.Fatal(err)
	}
	b.wait("knows that it is an issuer", func(s control.Status) bool { return s.Node.Issuer && len(s.Warnings) == 0 })
	made := must(b.TokenCreate(t.Context(), control.TokenRequest{Uses: 2}))(t)
	if err := b.TokenRevoke(t.Context(), made.ID[:8]); err != nil {
		t.Error(err)
	}
	refused(a.IssuerAdd(t.Context(), "n9"), control.NotFound, `no member is called "n9"`)
}
