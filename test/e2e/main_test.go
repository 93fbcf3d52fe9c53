// Package e2e holds stories: what an operator does and lives through, played by real daemons on hosts made of network
// namespaces, over real cables, with captures on them. One file tells one story.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft/test/cluster"
	"weft/test/netlab"
)

// programsEnv names a folder with built programs, weft and labprobe, to tell the stories with; without it they are built.
const programsEnv = "WEFT_E2E_PROGRAMS"

// programs are built once for all stories.
var programs cluster.Programs

const (
	// atOnce is how many stories are told beside each other: most of them wait most of the time. Those without t.Parallel
	// count lost packets, or press hard, and have the machine for themselves.
	atOnce = 3

	// patience is for what takes a moment on a machine that has nothing else to do, startPatience for what takes seconds.
	patience      = time.Minute
	startPatience = 2 * time.Minute
)

func TestMain(m *testing.M) {
	cluster.SpringTrap()
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", strconv.Itoa(atOnce)); err != nil {
			panic(err)
		}
	}
	os.Exit(func() int {
		if netlab.Supported() == nil {
			dir := os.Getenv(programsEnv)
			if dir == "" {
				var err error
				if dir, err = os.MkdirTemp("", "weft-e2e-"); err != nil {
					fmt.Fprintln(os.Stderr, err)
					return 1
				}
				defer os.RemoveAll(dir)
				if err := netlab.Build(dir, "weft/cmd/weft", "weft/test/labprobe"); err != nil {
					fmt.Fprintln(os.Stderr, err)
					return 1
				}
			}
			programs = cluster.Programs{Weft: filepath.Join(dir, "weft"), Probe: filepath.Join(dir, "labprobe")}
		}
		return m.Run()
	}())
}

// story is a lab of three sites with a machine on each.
type story struct {
	*testing.T
	lab      *netlab.Lab
	sites    *netlab.Sites
	a, b, c  *cluster.Machine
	machines []*cluster.Machine
}

// tell makes the lab. It skips where namespaces cannot be made.
func tell(t *testing.T) *story {
	t.Helper()
	s := &story{T: t, lab: netlab.New(t)}
	s.sites = netlab.ThreeSites(s.lab)
	for _, h := range s.sites.Hosts() {
		s.machines = append(s.machines, cluster.On(h, programs))
	}
	s.a, s.b, s.c = s.machines[0], s.machines[1], s.machines[2]
	return s
}

// site adds a fourth machine.
func (s *story) site(name string) *cluster.Machine {
	h, _ := s.sites.Site(s.lab, name, 4)
	m := cluster.On(h, programs)
	s.machines = append(s.machines, m)
	return m
}

// within is a deadline for one step.
func (s *story) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(s.Context(), netlab.Patience(d))
	s.Cleanup(cancel)
	return ctx
}

// must ends the story when a step fails.
func (s *story) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// form makes a cluster of all machines, the first one the founder, and waits until each reaches each.
func (s *story) form(args ...string) (token string) {
	s.Helper()
	token, err := s.machines[0].Found(s.within(startPatience), args...)
	s.must(err)
	for _, m := range s.machines[1:] {
		s.must(m.Up(append([]string{"--join", token}, args...)...))
	}
	s.whole()
	return token
}

// whole waits until all machines see and reach each other.
func (s *story) whole() {
	s.Helper()
	for _, m := range s.machines {
		_, err := m.WaitReady(s.within(startPatience), len(s.machines))
		s.must(err)
		_, err = m.WaitTunnels(s.within(startPatience), len(s.machines)-1)
		s.must(err)
	}
}

// pods attaches one pod to each machine.
func (s *story) pods() []*cluster.Pod {
	s.Helper()
	var pods []*cluster.Pod
	for _, m := range s.machines {
		p, err := m.Attach("1")
		s.must(err)
		pods = append(pods, p)
	}
	return pods
}

// connected checks that every pod reaches every other, with a few seconds' patience.
func (s *story) connected(pods []*cluster.Pod) {
	s.Helper()
	for _, p := range pods {
		for _, q := range pods {
			for _, addr := range q.Addrs {
				if p != q {
					s.must(p.WaitPing(s.within(patience), addr))
				}
			}
		}
	}
}

// distinct checks that no address is given twice, over all machines.
func (s *story) distinct() {
	s.Helper()
	owner := map[netip.Addr]string{}
	for _, m := range s.machines {
		st, err := m.Status()
		s.must(err)
		for _, a := range st.Node.Overlay {
			if o, twice := owner[a]; twice {
				s.Fatalf("%s is the address of %s and of %s", a, o, m)
			}
			owner[a] = m.Name()
		}
		var list struct {
			Claims []struct{ Address netip.Addr }
		}
		s.must(m.JSON(&list, "ip", "list"))
		for _, c := range list.Claims {
			if o, twice := owner[c.Address]; twice {
				s.Fatalf("%s is given by %s and by %s", c.Address, o, m)
			}
			owner[c.Address] = m.Name()
		}
	}
}

// took says how long a recovery took.
func (s *story) took(what string, since time.Time) {
	s.Helper()
	s.Logf("%s: whole again after %.2f s", what, time.Since(since).Seconds())
}

// watch captures on every cable of the machines what shows a pool address in clear.
func (s *story) watch(pools ...netip.Prefix) netlab.Captures {
	s.Helper()
	return s.lab.CaptureAll(netlab.CaptureOptions{Match: netlab.Cleartext(pools...), Keep: 16})
}

// sealed checks that the captures saw packets, and none in clear.
func (s *story) sealed(c netlab.Captures) {
	s.Helper()
	c.Stop()
	s.must(c.Err())
	if c.Seen() == 0 {
		s.Fatal("the captures saw nothing at all")
	}
	if c.Count() > 0 {
		s.Fatalf("%d of %d packets in clear:\n%s", c.Count(), c.Seen(), c.Describe(10))
	}
}

// refused checks that a command failed with words.
func (s *story) refused(err error, words ...string) {
	s.Helper()
	if err == nil {
		s.Fatalf("it should have been refused with %q", words)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			s.Errorf("the refusal does not say %q: %v", w, err)
		}
	}
}
