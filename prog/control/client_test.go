package control_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weft/prog/control"
	"weft/prog/control/controltest"
)

// node is a ready one with one peer.
func node() control.Status {
	return control.Status{
		Version: control.Version,
		Node: control.Node{
			ID: "mzxw6ytbaaaabbbbccccddddee", Name: "alpha", State: control.NodeReady, Issuer: true,
			Overlay: []netip.Addr{netip.MustParseAddr("10.32.0.1")}, UptimeS: 61,
		},
		Cluster: control.Cluster{ID: "c7q2k3mv", Pools: []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12")}, Members: 2, Alive: 2},
		Peers: []control.Peer{{
			ID: "onswg4tfaaaabbbbccccddddee", Name: "beta", State: control.PeerAlive, RTTms: 0.4,
			Endpoint: netip.MustParseAddrPort("192.0.2.8:6783"),
		}},
	}
}

// Two identical backends, one asked directly and one through the socket, answer the same to everything.
func TestClientAndBackendAnswerAlike(t *testing.T) {
	backend := func() *controltest.Backend {
		b := controltest.New(node())
		b.Details = map[string]control.PeerDetail{"beta": {Version: 1, Peer: b.Have.Peers[0], JoinSeq: 1}}
		b.Blocks = []control.Block{{Prefix: netip.MustParsePrefix("10.32.0.0/13"), OwnerName: "alpha", Seq: 3}}
		b.Checks = []control.Check{{Name: "tun", State: control.CheckOK}}
		b.Replies = []control.PingReply{{RTTms: 0.5, Transport: "sleeve", Path: control.PathDirect}, {Lost: "no answer within 2s"}}
		return b
	}
	ctx := t.Context()
	type call struct {
		name string
		do   func(control.Backend) (any, error)
	}
	for _, c := range []call{
		{"status", func(b control.Backend) (any, error) { return b.Status(ctx) }},
		{"init again", func(b control.Backend) (any, error) { return b.Init(ctx, control.InitRequest{Name: "x"}) }},
		{"join again", func(b control.Backend) (any, error) {
			return b.Join(ctx, control.JoinRequest{Token: controltest.Token})
		}},
		{"join with a bad token", func(b control.Backend) (any, error) { return b.Join(ctx, control.JoinRequest{Token: "weft1x"}) }},
		{"leave", func(b control.Backend) (any, error) { return b.Leave(ctx, control.LeaveRequest{Purge: true}) }},
		{"down", func(b control.Backend) (any, error) { return nil, b.Down(ctx) }},
		{"token create", func(b control.Backend) (any, error) {
			return b.TokenCreate(ctx, control.TokenRequest{TTL: control.Duration(time.Hour), Uses: 3})
		}},
		{"token list", func(b control.Backend) (any, error) { return b.TokenList(ctx) }},
		{"token revoke", func(b control.Backend) (any, error) { return nil, b.TokenRevoke(ctx, "a/b c?") }},
		{"attach", func(b control.Backend) (any, error) {
			return b.Attach(ctx, control.AttachRequest{Netns: "/run/netns/web", IP: netip.MustParseAddr("10.32.0.9")})
		}},
		{"detach", func(b control.Backend) (any, error) {
			return b.Detach(ctx, control.DetachRequest{Netns: "/run/netns/web"})
		}},
		{"peer list", func(b control.Backend) (any, error) { return b.PeerList(ctx) }},
		{"peer show", func(b control.Backend) (any, error) { return b.PeerShow(ctx, "beta") }},
		{"peer show of nobody", func(b control.Backend) (any, error) { return b.PeerShow(ctx, "../%2e") }},
		{"issuer list", func(b control.Backend) (any, error) { return b.IssuerList(ctx) }},
		{"issuer add", func(b control.Backend) (any, error) { return nil, b.IssuerAdd(ctx, "beta") }},
		{"issuer remove", func(b control.Backend) (any, error) { return nil, b.IssuerRemove(ctx, "gamma") }},
		{"ip list", func(b control.Backend) (any, error) { return b.IPList(ctx) }},
		{"ip ring", func(b control.Backend) (any, error) { return b.IPRing(ctx) }},
		{"graph", func(b control.Backend) (any, error) { return b.Graph(ctx) }},
		{"doctor", func(b control.Backend) (any, error) { return b.Doctor(ctx, control.DoctorRequest{Peer: "beta"}) }},
		{"ping", func(b control.Backend) (any, error) {
			var got []control.PingReply
			err := b.Ping(ctx, control.PingRequest{Peer: "beta", Count: 2}, func(r control.PingReply) error {
				got = append(got, r)
				return nil
			})
			return got, err
		}},
		{"ping of nobody", func(b control.Backend) (any, error) {
			return nil, b.Ping(ctx, control.PingRequest{Peer: "gamma", Count: 2}, nil)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := control.NewClient(controltest.Start(t, backend()))
			want, wantErr := c.do(backend())
			got, gotErr := c.do(client)
			// What travels is JSON: compare what a script would see.
			if diff := cmp.Diff(asJSON(t, want), asJSON(t, got)); diff != "" {
				t.Errorf("through the socket it differs (-direct +client):\n%s", diff)
			}
			if fmt.Sprint(gotErr) != fmt.Sprint(wantErr) {
				t.Errorf("error %v, directly %v", gotErr, wantErr)
			}
			var e *control.Error
			if wantErr != nil && (!errors.As(gotErr, &e) || !errors.Is(gotErr, e.Code) || !errors.Is(wantErr, e.Code)) {
				t.Errorf("code of %v got lost", wantErr)
			}
		})
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestErrorsKeepTheirWords(t *testing.T) {
	b := controltest.New(node())
	b.Fail = map[string]error{
		"Status":     fmt.Errorf("wrapped for a log: %w", &control.Error{Code: control.NoQuorum, Message: "no quorum", Cause: "n2 is away", Hint: "Start it"}),
		"TokenList":  errors.New("open store: permission denied"),
		"IPRing":     &control.Error{Code: control.Unreachable, Message: "no peer answered"},
		"IssuerList": context.DeadlineExceeded,
		"PeerList":   &control.Error{Code: "from-the-future", Message: "something new"},
	}
	client := control.NewClient(controltest.Start(t, b))
	for name, c := range map[string]struct {
		do   func() error
		code control.Code
		text string
		exit int
	}{
		"an error for people": {
			func() error { _, err := client.Status(t.Context()); return err },
			control.NoQuorum, "no quorum (n2 is away). Start it", control.ExitFailed,
		},
		"an error for logs": {
			func() error { _, err := client.TokenList(t.Context()); return err },
			control.Failed, "open store: permission denied", control.ExitFailed,
		},
		"a peer out of reach is not a daemon out of reach": {
			func() error { _, err := client.IPRing(t.Context()); return err },
			control.Failed, "no peer answered", control.ExitFailed,
		},
		"a deadline": {
			func() error { _, err := client.IssuerList(t.Context()); return err },
			control.Timeout, "it took too long (context deadline exceeded)", control.ExitFailed,
		},
		"a code of a newer daemon": {
			func() error { _, err := client.PeerList(t.Context()); return err },
			"from-the-future", "something new", control.ExitFailed,
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.do()
			if !errors.Is(err, c.code) || err.Error() != c.text || control.ExitCode(err) != c.exit {
				t.Errorf("got %q, exit %d, want %s %q, exit %d", err, control.ExitCode(err), c.code, c.text, c.exit)
			}
		})
	}
}

func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	mute := filepath.Join(dir, "mute.sock") // accepts, hangs up
	m, err := net.Listen("unix", mute)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	defer serving.Wait()
	defer m.Close()
	serving.Go(func() {
		for {
			c, err := m.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	})
	for path, want := range map[string]string{
		filepath.Join(dir, "none.sock"): "no socket at",
		dead:                            "nobody listens at",
		mute:                            "went away before it answered",
	} {
		_, err := control.NewClient(path).Status(t.Context())
		if !errors.Is(err, control.Unreachable) || control.ExitCode(err) != control.ExitUnreachable || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", path, err)
		}
	}
}

func TestWhatAnswersIsNotWeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	defer serving.Wait()
	defer l.Close()
	serving.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 4096)
		if _, err := c.Read(buf); err != nil {
			return
		}
		fmt.Fprint(c, "HTTP/1.1 500 Oops\r\nContent-Length: 5\r\n\r\nhello")
	})
	_, err = control.NewClient(path).Status(t.Context())
	if err == nil || !strings.Contains(err.Error(), "is not weft (500 Oops)") {
		t.Errorf("got %v", err)
	}
}

func TestPingStreams(t *testing.T) {
	b := controltest.New(node())
	b.Replies = []control.PingReply{{RTTms: 1}, {RTTms: 2}}
	client := control.NewClient(controltest.Start(t, b))

	t.Run("until the caller hangs up", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		n := 0
		err := client.Ping(ctx, control.PingRequest{Peer: "beta"}, func(control.PingReply) error {
			if n++; n == 2 { // both arrived although the stream goes on
				cancel()
			}
			return nil
		})
		if n != 2 || !errors.Is(err, context.Canceled) {
			t.Errorf("%d replies, then %v", n, err)
		}
	})
	t.Run("until the callback fails", func(t *testing.T) {
		enough := errors.New("enough")
		if err := client.Ping(t.Context(), control.PingRequest{Peer: "beta"}, func(control.PingReply) error { return enough }); !errors.Is(err, enough) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("refuses nonsense", func(t *testing.T) {
		if err := client.Ping(t.Context(), control.PingRequest{Peer: "beta", Count: -1}, nil); !errors.Is(err, control.Usage) {
			t.Errorf("got %v", err)
		}
	})
}

// failsLate breaks after the first reply, when the headers are gone.
type failsLate struct{ *controltest.Backend }

func (failsLate) Ping(_ context.Context, _ control.PingRequest, reply func(control.PingReply) error) error {
	if err := reply(control.PingReply{Seq: 1}); err != nil {
		return err
	}
	return &control.Error{Code: control.NotFound, Message: "the peer was removed"}
}

func TestPingFailsInTheMiddle(t *testing.T) {
	client := control.NewClient(serve(t, failsLate{controltest.New(node())}))
	n := 0
	err := client.Ping(t.Context(), control.PingRequest{Peer: "beta"}, func(control.PingReply) error { n++; return nil })
	if n != 1 || !errors.Is(err, control.NotFound) {
		t.Errorf("%d replies, then %v", n, err)
	}
}

// serve is for backends that are not controltest's.
func serve(t *testing.T, b control.Backend) (path string) {
	t.Helper()
	path = filepath.Join(shortDir(t), "s")
	s, err := control.Listen(control.Config{Path: path, Backend: b})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := s.Serve(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		serving.Wait()
		s.Close()
	})
	return path
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "weft") //nolint:usetesting // t.TempDir holds the test's name: too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestManyAtOnce(t *testing.T) {
	client := control.NewClient(controltest.Start(t, controltest.New(node())))
	want, err := client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			for range 8 {
				got, err := client.Status(t.Context())
				if err != nil || !reflect.DeepEqual(got, want) {
					t.Errorf("got %+v, %v", got, err)
					return
				}
			}
		})
	}
	all.Wait()
}

func TestGoneWaitsForTheLock(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	s, err := control.Listen(control.Config{Path: path, Backend: controltest.New(node())})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	client := control.NewClient(path)
	short, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
	defer cancel()
	if err := client.Gone(short); !errors.Is(err, control.Timeout) {
		t.Errorf("while it runs: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := client.Gone(t.Context()); err != nil {
		t.Errorf("after its end: %v", err)
	}
	if err := control.NewClient(path + "none").Gone(t.Context()); err != nil {
		t.Errorf("where there never was one: %v", err)
	}
}
