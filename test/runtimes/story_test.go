package runtimes_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weft/test/netlab"
	"weft/test/runtimes"
)

// programsEnv names a folder with built programs to tell the stories with; without it they are built.
const programsEnv = "WEFT_E2E_PROGRAMS"

// bin is where the programs are, once somebody needs them.
var bin folder

type folder struct {
	once sync.Once
	path string
	err  error
}

func (f *folder) get() (string, error) {
	f.once.Do(func() {
		if f.path = os.Getenv(programsEnv); f.path != "" {
			return
		}
		if f.path, f.err = os.MkdirTemp("", "weft-runtimes-"); f.err == nil {
			f.err = netlab.Build(f.path, "weft/cmd/weft", "weft/cmd/weft-cni")
		}
	})
	return f.path, f.err
}

func (f *folder) remove() {
	if f.path != "" && os.Getenv(programsEnv) == "" {
		_ = os.RemoveAll(f.path)
	}
}

func TestMain(m *testing.M) {
	runtimes.BeNode()
	os.Exit(func() int {
		defer bin.remove()
		return m.Run()
	}())
}

// patience is for what takes a moment on a machine that has nothing else to do, startPatience for what takes seconds: the
// start of a runtime, or of all of a machine's containers.
const (
	patience      = time.Minute
	startPatience = 5 * time.Minute
)

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// need says what to install where a program is missing.
func need(t *testing.T, packages string, files ...string) {
	t.Helper()
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			t.Fatalf("%v: apt-get install --no-install-recommends %s", err, packages)
		}
	}
}

// story is some nodes with weft.
type story struct {
	*testing.T
	lab   *netlab.Lab
	nodes []*runtimes.Weft
}

// page is where people find the configuration list; what stands there is what the runtimes of the stories get.
const page = "../../site/cni.md"

// shown is the list that the page shows.
func shown(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(b), "<<'END'\n")
	list, _, ended := strings.Cut(rest, "END\n")
	if !found || !ended {
		t.Fatalf("%s shows no configuration list", page)
	}
	return list
}

// tell makes a cluster of n nodes, each behind a router of its own.
func tell(t *testing.T, n int, args ...string) *story {
	t.Helper()
	need(t, "containernetworking-plugins iproute2 nftables", "/usr/lib/cni/portmap", "/usr/sbin/nft")
	dir, err := bin.get()
	if err != nil {
		t.Fatal(err)
	}
	s := &story{T: t, lab: netlab.New(t)}
	sites := netlab.ThreeSites(s.lab)
	var token string
	for i, h := range sites.Hosts()[:n] {
		w, err := runtimes.New(t, h).InstallWeft(dir)
		s.must(err)
		s.must(w.Configure(shown(t)))
		s.nodes = append(s.nodes, w)
		if i == 0 {
			token, err = w.Found(t.Context(), args...)
		} else {
			err = w.Up(append([]string{"--join", token}, args...)...)
		}
		s.must(err)
	}
	s.whole()
	return s
}

// whole waits until all reach all.
func (s *story) whole() {
	s.Helper()
	for _, w := range s.nodes {
		s.must(w.WaitReady(within(s.T, startPatience), len(s.nodes)))
	}
}

func (s *story) must(err error) {
	s.Helper()
	if err != nil {
		for _, w := range s.nodes {
			if w.Daemon != nil {
				s.Logf("weft on %s:\n%s", w.Name(), netlab.Tail(w.Daemon.Stderr(), 20))
			}
		}
		s.Fatal(err)
	}
}

// sh runs a line on a node.
func (s *story) sh(w *runtimes.Weft, line string) string {
	s.Helper()
	out, err := w.Exec(within(s.T, startPatience), "sh", "-c", line)
	s.must(err)
	return strings.TrimSpace(out)
}

// unchanged holds that f leaves a node as it found it; what weft does in the background is waited for.
func (s *story) unchanged(w *runtimes.Weft, f func()) {
	s.Helper()
	before := s.settled(w)
	f()
	err := runtimes.Poll(within(s.T, patience), func() error {
		after, err := w.Picture(s.Context())
		if err == nil && after != before {
			err = fmt.Errorf("something is left behind:\n%s", cmp.Diff(strings.Split(before, "\n"), strings.Split(after, "\n")))
		}
		return err
	})
	if err != nil {
		s.Error(err)
	}
}

// settled is the picture of a node where nothing changes any more.
func (s *story) settled(w *runtimes.Weft) string {
	s.Helper()
	picture, err := rest(s.T, func() (string, error) { return w.Picture(s.Context()) })
	s.must(err)
	return picture
}

// rest looks until nothing has changed for a while.
func rest(t *testing.T, look func() (string, error)) (picture string, err error) {
	t.Helper()
	const looks, while = 5, time.Second
	last, same, since := "", 0, time.Time{}
	err = runtimes.Poll(within(t, startPatience), func() (err error) {
		if picture, err = look(); err != nil {
			return err
		}
		if same++; picture != last {
			last, same, since = picture, 0, time.Now()
		}
		if same < looks || time.Since(since) < while {
			return errors.New("it is not at rest")
		}
		return nil
	})
	return picture, err
}

// addresses finds those of a device in a namespace of a node.
func (s *story) addresses(w *runtimes.Weft, netns string) (v4, v6 string) {
	s.Helper()
	for line := range strings.Lines(s.sh(w, "ip -n "+filepath.Base(netns)+" -o addr show scope global")) {
		f := strings.Fields(line)
		addr, _, _ := strings.Cut(f[3], "/")
		if f[2] == "inet" {
			v4 = addr
		} else {
			v6 = addr
		}
	}
	return v4, v6
}
