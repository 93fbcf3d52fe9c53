package control_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weft/prog/control"
	"weft/prog/control/controltest"
)

func TestListen(t *testing.T) {
	listen := func(t *testing.T, cfg control.Config) {
		t.Helper()
		s, err := control.Listen(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
	}
	mode := func(t *testing.T, path string) fs.FileMode {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}
	refused := func(t *testing.T, path string, code control.Code, words string) {
		t.Helper()
		s, err := control.Listen(control.Config{Path: path, Backend: controltest.New(node())})
		if err == nil {
			s.Close()
			t.Fatal("it was allowed")
		}
		if !errors.Is(err, code) || !strings.Contains(err.Error(), words) {
			t.Errorf("got %v", err)
		}
	}

	t.Run("makes the folder, and a socket for its owner only where the group does not exist", func(t *testing.T) {
		path := filepath.Join(shortDir(t), "run", "weft.sock")
		listen(t, control.Config{Path: path, Group: "no-such-group"})
		if got := mode(t, path); got != 0o600 {
			t.Errorf("mode %o", got)
		}
	})
	t.Run("lets the group in where it exists", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("needs root, to give a file to a group")
		}
		path := filepath.Join(shortDir(t), "s")
		listen(t, control.Config{Path: path, Group: "daemon"})
		if got := mode(t, path); got != 0o660 {
			t.Errorf("mode %o", got)
		}
	})
	t.Run("replaces a socket that nobody serves", func(t *testing.T) {
		path := filepath.Join(shortDir(t), "s")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
		listen(t, control.Config{Path: path})
	})
	t.Run("refuses when another daemon serves it", func(t *testing.T) {
		refused(t, controltest.Start(t, controltest.New(node())), control.Conflict, "weft is already running here (pid ")
	})
	t.Run("waits for what a killed daemon was about to start", func(t *testing.T) {
		path := filepath.Join(shortDir(t), "s")
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		killed := exec.CommandContext(t.Context(), self)
		killed.Env = append(os.Environ(), heirEnv+"="+path)
		heir, stdin, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer stdin.Close()
		killed.Stdin = heir
		if err := errors.Join(killed.Run(), heir.Close()); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(100*time.Millisecond, func() { stdin.Close() })
		listen(t, control.Config{Path: path})
	})
	t.Run("refuses when another daemon holds the lock but not the socket yet", func(t *testing.T) {
		path := filepath.Join(shortDir(t), "s")
		listen(t, control.Config{Path: path})
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		refused(t, path, control.Conflict, "weft is already running here")
	})
	t.Run("refuses to replace what is no socket", func(t *testing.T) {
		path := filepath.Join(shortDir(t), "precious")
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, path, control.Failed, "a file that is no socket is in the way")
	})
	t.Run("names the limit of a path", func(t *testing.T) {
		refused(t, filepath.Join(shortDir(t), strings.Repeat("x", 120)), control.Failed, "The path may have 107 bytes at most")
	})
	t.Run("two daemons that start at once: one gets it", func(t *testing.T) {
		path := filepath.Join(shortDir(t), "s")
		var wg sync.WaitGroup
		won := make(chan *control.Server, 8)
		for range cap(won) {
			wg.Go(func() {
				if s, err := control.Listen(control.Config{Path: path}); err == nil {
					won <- s
				} else if !errors.Is(err, control.Conflict) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Errorf("%d of %d got it", len(won), cap(won))
		}
		for range len(won) {
			(<-won).Close()
		}
	})
	t.Run("daemons that come and go: never two at once", func(t *testing.T) {
		path := filepath.Join(shortDir(t), "s")
		var wg sync.WaitGroup
		var inside, wins atomic.Int32
		for range 8 {
			wg.Go(func() {
				for range 50 {
					s, err := control.Listen(control.Config{Path: path})
					if errors.Is(err, control.Conflict) {
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					if inside.Add(1) != 1 {
						t.Error("two at once")
					}
					wins.Add(1)
					inside.Add(-1)
					if err := s.Close(); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if wins.Load() == 0 {
			t.Error("nobody ever got it")
		}
	})
	t.Run("leaves nothing behind when it ends", func(t *testing.T) {
		path := filepath.Join(shortDir(t), "s")
		stop, err := controltest.Serve(path, controltest.New(node()))
		if err != nil {
			t.Fatal(err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
		listen(t, control.Config{Path: path})
	})
}

// post sends bytes that Client would not.
func post(t *testing.T, path, method, url, body string) (int, string) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://weft"+url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestRequestsThatMakeNoSense(t *testing.T) {
	path := controltest.Start(t, controltest.New(node()))
	for name, c := range map[string]struct {
		method, url, body string
		status            int
		words             string
	}{
		"an unknown field is refused by name": {"POST", "/v1/leave", `{"purge":true,"burn":1}`, 400, `unknown field \"burn\"`},
		"a field of the wrong kind":           {"POST", "/v1/leave", `{"purge":"yes"}`, 400, `field purge wants bool`},
		"no JSON":                             {"POST", "/v1/leave", `{`, 400, "not understand"},
		"nothing":                             {"POST", "/v1/leave", ``, 400, "not understand"},
		"two documents":                       {"POST", "/v1/leave", `{}{}`, 400, "more than one JSON document"},
		"an address that is none":             {"POST", "/v1/attach", `{"netns":"x","ip":"10.0.0.256"}`, 400, "not understand"},
		"a duration that is none":             {"POST", "/v1/tokens", `{"ttl":"soon"}`, 400, "not understand"},
		"more than fits":                      {"POST", "/v1/leave", `{"purge":` + strings.Repeat(" ", 1<<17) + `true}`, 400, "larger than 65536 bytes"},
		"an unknown command":                  {"GET", "/v1/teapot", ``, 501, "GET /v1/teapot"},
		"a command with the wrong verb":       {"DELETE", "/v1/status", ``, 501, "DELETE /v1/status"},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := post(t, path, c.method, c.url, c.body)
			if status != c.status || !strings.Contains(body, c.words) {
				t.Errorf("%d %s", status, body)
			}
		})
	}
}

// A runtime lists all its containers: thousands are more than any other request may say.
func TestALongListOfContainersFits(t *testing.T) {
	c := control.NewClient(controltest.Start(t, controltest.New(node())))
	r := control.CollectRequest{Network: "pods"}
	for i := range 8000 {
		r.Keep = append(r.Keep, control.Attached{Container: fmt.Sprintf("%064x", i), Ifname: "eth0"})
	}
	if _, err := c.Collect(t.Context(), r); err != nil {
		t.Error(err)
	}
	r.Network = strings.Repeat("x", 2<<20)
	if _, err := c.Collect(t.Context(), r); !errors.Is(err, control.Usage) {
		t.Errorf("three megabytes: %v", err)
	}
}

func TestReportHoldsNoToken(t *testing.T) {
	path := controltest.Start(t, controltest.New(node()))
	r, err := control.NewClient(path).Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if text := asJSON(t, r); strings.Contains(text, controltest.Token[:10]) || !strings.Contains(text, "weft1(blotted out)") {
		t.Errorf("the token shows: %s", text)
	}
}

// slow holds every Status until it is let go.
type slow struct {
	*controltest.Backend
	entered chan struct{}
	release chan struct{}
}

func (s slow) Status(ctx context.Context) (control.Status, error) {
	s.entered <- struct{}{}
	select {
	case <-s.release:
	case <-ctx.Done():
	}
	return s.Backend.Status(ctx)
}

func TestTooManyRequestsAreRefused(t *testing.T) {
	b := slow{controltest.New(node()), make(chan struct{}), make(chan struct{})}
	client := control.NewClient(serve(t, b))
	const limit = 64
	var waiting sync.WaitGroup
	for range limit {
		waiting.Go(func() {
			if _, err := client.Status(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	for range limit {
		<-b.entered
	}
	if _, err := client.TokenList(t.Context()); !errors.Is(err, control.Busy) {
		t.Errorf("one more: %v", err)
	}
	close(b.release)
	waiting.Wait()
	if _, err := client.TokenList(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestCallerThatHangsUpEndsItsRequest(t *testing.T) {
	b := slow{controltest.New(node()), make(chan struct{}), make(chan struct{})}
	client := control.NewClient(serve(t, b))
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	asking.Go(func() {
		if _, err := client.Status(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	<-b.entered
	cancel()
	asking.Wait() // and the server's end would hang in serve's cleanup if the request did not end
}

// panics is a bug in the daemon.
type panics struct{ *controltest.Backend }

func (panics) IPRing(context.Context) (control.Ring, error) { panic("a bug") }

func TestPanicOfOneRequest(t *testing.T) {
	client := control.NewClient(serve(t, panics{controltest.New(node())}))
	if _, err := client.IPRing(t.Context()); !errors.Is(err, control.Failed) || !strings.Contains(err.Error(), "made a mistake") {
		t.Errorf("got %v", err)
	}
	if _, err := client.Status(t.Context()); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

// stops ends the daemon in the middle of answering.
type stops struct {
	*controltest.Backend
	cancel context.CancelFunc
}

func (s stops) Down(context.Context) error {
	s.cancel()
	return nil
}

func TestAnswerToDownStillGoesOut(t *testing.T) {
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		path := filepath.Join(shortDir(t), "s")
		s, err := control.Listen(control.Config{Path: path, Backend: stops{controltest.New(node()), cancel}})
		if err != nil {
			t.Fatal(err)
		}
		var serving sync.WaitGroup
		serving.Go(func() {
			defer s.Close()
			if err := s.Serve(ctx); err != nil {
				t.Error(err)
			}
		})
		client := control.NewClient(path)
		if err := client.Down(t.Context()); err != nil {
			t.Errorf("down: %v", err)
		}
		if err := client.Gone(t.Context()); err != nil {
			t.Error(err)
		}
		serving.Wait()
		cancel()
	}
}

func TestHandlerWithoutServerAllowsNothing(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(shortDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: control.Handler(controltest.New(node()))}
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(l) })
	defer serving.Wait()
	defer srv.Close()
	if _, err := control.NewClient(l.Addr().String()).Status(t.Context()); !errors.Is(err, control.Denied) {
		t.Errorf("got %v", err)
	}
}
