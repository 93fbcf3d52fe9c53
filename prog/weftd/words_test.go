package weftd

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/crypto/identity"
	"weft/crypto/token"
	"weft/mesh/join"
	"weft/mesh/peer"
	"weft/prog/control"
	"weft/router"
)

func TestLogLinesKeepTheLast(t *testing.T) {
	var passed strings.Builder
	l := newLogLines(slog.NewTextHandler(&passed, &slog.HandlerOptions{Level: slog.LevelInfo}))
	log := slog.New(l).With("who", "a").WithGroup("g")
	log.Debug("not asked for")
	for i := range maxLogLines + 5 {
		log.Info("line", "n", i)
	}
	log.Info("long", "x", strings.Repeat("x", 2*maxLogLine))
	got := l.last()
	if len(got) != maxLogLines {
		t.Fatalf("%d lines", len(got))
	}
	if first := got[0]; !strings.HasSuffix(first, "msg=line who=a g.n=6") {
		t.Errorf("oldest %q", first)
	}
	if last := got[len(got)-1]; len(last) > maxLogLine {
		t.Errorf("a line of %d bytes", len(last))
	}
	if n := strings.Count(passed.String(), "\n"); n != maxLogLines+6 {
		t.Errorf("%d lines were passed on", n)
	}
}

func TestInviteLimits(t *testing.T) {
	m, _ := testMembership(t)
	root := must(identity.ParseKey([]byte(strings.Repeat("\x02", 32))))(t)
	now := time.Unix(1_800_000_000, 0)
	seeds := inviteSeeds([]netip.AddrPort{
		netip.MustParseAddrPort("192.0.2.1:6783"), netip.MustParseAddrPort("192.0.2.2:6783"), netip.MustParseAddrPort("[2001:db8::1]:6783"),
	}, m.certificate.ID())
	if len(seeds) != 2 {
		t.Fatalf("%d seeds, want one of each family", len(seeds))
	}
	ask := func(r control.TokenRequest, seeds []token.Seed) (*identity.Invitation, error) {
		_, inv, err := invite(identity.Issuer{Key: root}, m.cluster, seeds, r, now)
		return inv, err
	}
	for _, c := range []struct {
		r    control.TokenRequest
		want string
	}{
		{control.TokenRequest{TTL: control.Duration(time.Millisecond)}, "ttl: want between 1s and 8760h (got 1ms)"},
		{control.TokenRequest{TTL: control.Duration(maxTTL + time.Second)}, "ttl: want between 1s and 8760h (got 8760h0m1s)"},
		{control.TokenRequest{TTL: control.Duration(-time.Hour)}, "ttl: want between 1s and 8760h (got -1h0m0s)"},
		{control.TokenRequest{Uses: -1}, "uses: want a positive number, or 0 for no limit"},
	} {
		if _, err := ask(c.r, seeds); err == nil || err.Error() != c.want {
			t.Errorf("%+v: %v", c.r, err)
		}
	}
	if _, err := ask(control.TokenRequest{}, nil); !errors.Is(err, errNoAddress) {
		t.Errorf("a token that leads nowhere: %v", err)
	}
	inv := must(ask(control.TokenRequest{}, seeds))(t)
	if life := inv.NotAfter.Sub(now); life != defaultTTL || inv.Uses != 0 || inv.Ephemeral {
		t.Errorf("by default: %v, %d uses", life, inv.Uses)
	}
	inv = must(ask(control.TokenRequest{TTL: control.Duration(time.Hour), Uses: 3, Ephemeral: true}, seeds))(t)
	if life := inv.NotAfter.Sub(now); life != time.Hour || inv.Uses != 3 || !inv.Ephemeral {
		t.Errorf("as asked: %v, %d uses", life, inv.Uses)
	}
}

func TestPick(t *testing.T) {
	id := func(n byte) peer.ID { return peer.ID{0xab, 0xcd, 0xef, n} }
	members := []peer.Info{{ID: id(1), Name: "alpha"}, {ID: id(2), Name: "beta"}, {ID: id(3), Name: "beta"}, {ID: peer.ID{9}, Name: id(1).String()[:6]}}
	for word, want := range map[string]string{
		"alpha": id(1).String(), id(2).String(): id(2).String(), id(1).String()[:6]: peer.ID{9}.String(), // a name wins
		"beta":                  "2 members are called \"beta\" (" + id(2).String() + ", " + id(3).String() + "). Name one by its ID",
		id(2).String()[:5]:      "3 members are called \"" + id(2).String()[:5] + "\" (" + id(1).String() + ", " + id(2).String() + ", " + id(3).String() + "). Name one by its ID",
		id(2).String()[:3]:      "no member is called \"" + id(2).String()[:3] + "\". Try: weft peer list",
		"":                      `no member is called "". Try: weft peer list`,
		id(2).String() + "aaaa": `no member is called "` + id(2).String() + `aaaa". Try: weft peer list`,
	} {
		info, err := pick(members, word)
		got := info.ID.String()
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: got  %s\n\twant %s", word, got, want)
		}
	}
}

func TestPeerReason(t *testing.T) {
	up, down := router.Link{Up: true}, router.Link{Reason: "no answer for 3 s"}
	for _, c := range []struct {
		state peer.State
		heard bool
		link  router.Link
		owns  bool
		want  string
	}{
		{peer.Alive, true, up, true, "best"},
		{peer.Alive, true, down, true, "best; no answer for 3 s"},
		{peer.Dead, true, up, true, "gossip calls it dead, and its packets arrive; best"},
		{peer.Dead, true, down, true, "best; no answer for 3 s"},
		{peer.Dead, false, down, true, "not heard since the start; best; no answer for 3 s"},
		{peer.Dead, true, down, false, "it has left, or is away and owns no addresses"},
		{peer.Removed, true, up, true, "removed from the cluster"},
	} {
		info := peer.Info{State: c.state}
		if c.heard {
			info.LastSeen = time.Now()
		}
		if got := peerReason(info, router.PeerStatus{Transport: "sleeve", Reason: "best", Link: c.link}, c.owns); got != c.want {
			t.Errorf("%v: got %q, want %q", c, got, c.want)
		}
	}
}

func TestPeerStatusWithoutSession(t *testing.T) {
	now := time.Now()
	got := peerStatus(peer.Info{}, router.PeerStatus{}, nil, now)
	if got.KeyAgeS != -1 || got.LastSeenS != -1 || got.Path != control.PathNone || got.Encrypted {
		t.Errorf("a stranger: %+v", got)
	}
	got = peerStatus(peer.Info{LastSeen: now.Add(-time.Minute)}, router.PeerStatus{Transport: "sleeve", Encrypted: true, Link: router.Link{
		Up: true, LastSeen: now.Add(-time.Second), KeyAge: 35 * time.Second, RTT: 420 * time.Microsecond,
	}}, nil, now)
	if got.KeyAgeS != 35 || got.LastSeenS != 1 || got.RTTms != 0.42 || got.Path != control.PathDirect {
		t.Errorf("a friend: %+v", got)
	}
	got = peerStatus(peer.Info{}, router.PeerStatus{Transport: "vxlan", Link: router.Link{LastSeen: now, KeyAge: -1}}, nil, now)
	if got.KeyAgeS != -1 {
		t.Errorf("a transport without keys: %+v", got)
	}
}

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		err  error
		code control.Code
		want string
	}{
		{&join.Error{Code: join.CodeNoQuorum, Sentence: "no quorum", Cause: "2 of 4", Hint: "Wait"}, control.NoQuorum, "no quorum (2 of 4). Wait"},
		{&join.Error{Code: join.CodeTruncated, Sentence: "torn"}, control.Usage, "torn"},
		{&join.Error{Code: join.CodeBusy, Sentence: "busy"}, control.Busy, "busy"},
		{fmt.Errorf("outer: %w", errNoAddress), control.NotReady, ""},
		{errors.New("plain"), control.Failed, "plain"},
	} {
		got := control.Explain(explain(c.err))
		if got.Code != c.code || c.want != "" && got.Error() != c.want {
			t.Errorf("%v: %s %v", c.err, got.Code, got)
		}
	}
	if explain(nil) != nil {
		t.Error("nothing went wrong")
	}
}

// TestNotify tells a real socket, by path and in the abstract namespace.
func TestNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notify("READY=1"); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	for _, path := range []string{filepath.Join(t.TempDir(), "n"), "@weft-test-" + fmt.Sprint(time.Now().UnixNano())} {
		addr := &net.UnixAddr{Name: path, Net: "unixgram"}
		if path[0] == '@' {
			addr.Name = "\x00" + path[1:]
		}
		c := must(net.ListenUnixgram("unixgram", addr))(t)
		t.Setenv("NOTIFY_SOCKET", path)
		for _, state := range []string{"READY=1", "STOPPING=1"} {
			if err := notify(state); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 100)
			n := must(c.Read(b))(t)
			if got := string(b[:n]); got != state {
				t.Errorf("%s: got %q", path, got)
			}
		}
		c.Close()
	}
	if err := notify("READY=1"); err == nil {
		t.Error("nobody listens, and nobody says so")
	}
}

func TestDoctorWithoutDaemon(t *testing.T) {
	dir := t.TempDir()
	cfg := must(Config{State: filepath.Join(dir, "none"), Listen: netip.MustParseAddrPort("127.0.0.1:1")}.Complete())(t)
	find := func(name string) control.Check {
		t.Helper()
		doc := must(Doctor(t.Context(), cfg))(t)
		for _, c := range doc.Checks {
			if c.Name == name {
				return c
			}
		}
		return control.Check{}
	}
	if c := find("state"); c.State != control.CheckOK || c.Reason != cfg.State+" is not there yet, so weft up begins a new life" {
		t.Errorf("no state: %+v", c)
	}
	m, key := testMembership(t)
	cfg.State = filepath.Join(dir, "state")
	s := openTestState(t, cfg.State)
	if c := find("membership"); c.State != control.CheckOK || !strings.HasPrefix(c.Reason, "none yet") {
		t.Errorf("no membership: %+v", c)
	}
	if err := errors.Join(m.admit(s), s.writeKey(fileIdentity, key.Signer())); err != nil {
		t.Fatal(err)
	}
	if c := find("membership"); c.State != control.CheckOK || c.Reason != "alpha in cluster "+clusterName(m.cluster) {
		t.Errorf("a member: %+v", c)
	}
	if err := s.write(fileMembership, []byte{0x20}); err != nil {
		t.Fatal(err)
	}
	if c := find("membership"); c.State != control.CheckFailed {
		t.Errorf("a newer state: %+v", c)
	}
	taken := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer taken.Close()
	cfg.Listen = netip.MustParseAddrPort(taken.Addr().String())
	if c := find("port"); c.State != control.CheckFailed || !strings.HasPrefix(c.Reason, "cannot open TCP port ") {
		t.Errorf("a port that is taken: %+v", c)
	}
}

func TestShowConfigHidesTheToken(t *testing.T) {
	cfg := must(Config{Join: "weft1aaaabbbbcccc", Name: "alpha"}.Complete())(t)
	if got := string(cfg.show()); strings.Contains(got, "aaaabbbb") || !strings.Contains(got, `"join":"(a token)"`) || !strings.Contains(got, `"name":"alpha"`) {
		t.Error(got)
	}
}
