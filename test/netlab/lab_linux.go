package netlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// beforeDeadline is how long before the test binary is killed for lack of time a lab tears itself down.
const beforeDeadline = 5 * time.Second

// Options say how a lab lives. The zero value is a lab with a name of its own that fails by panic (see Recover).
type Options struct {
	// Name is put before the names of the namespaces; empty means nl<pid>-<number>. Only one lab of a name stands at a time.
	Name string
	// Fatalf is called when building fails and must not return; nil panics with a Failure.
	Fatalf func(format string, args ...any)
}

// Failure is what building panics with when there is no test to fail.
type Failure struct{ Err error }

// Recover turns a Failure that is passing into *err; for use with defer in programs that build a lab without a test.
func Recover(err *error) {
	switch f := recover().(type) {
	case nil:
	case Failure:
		*err = errors.Join(*err, f.Err)
	default:
		panic(f)
	}
}

// Lab is a set of hosts and the links between them. Its methods may be called from any goroutine.
type Lab struct {
	name   string
	dir    string // below stateDir, holds the registry and all scratch files
	lock   *os.File
	opts   Options
	forks  chan func(home int) // to the thread that starts every process
	forker sync.WaitGroup

	closing sync.Once
	done    chan struct{} // closed when Close has finished
	ctx     context.Context
	cancel  context.CancelFunc

	mu       sync.Mutex
	hosts    []*Host
	links    []*Link
	procs    []*Cmd
	captures []*Capture
	kept     bool
}

// New makes a lab that ends with the test. Without root it skips the test.
func New(tb testing.TB) *Lab {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: network namespaces (run as: sudo make test)")
	}
	if err := Supported(); err != nil {
		tb.Skipf("needs network namespaces: %v", err)
	}
	l, err := Open(Options{Fatalf: func(format string, args ...any) {
		tb.Helper()
		tb.Fatalf(format, args...)
	}})
	if err != nil {
		tb.Fatalf("open lab: %v", err)
	}
	release := l.closeOnSignal()
	var timer *time.Timer
	if d, ok := tb.(interface{ Deadline() (time.Time, bool) }); ok {
		if end, ok := d.Deadline(); ok {
			timer = time.AfterFunc(time.Until(end)-beforeDeadline, func() {
				fmt.Fprintf(os.Stderr, "netlab: the time of %s is up, tearing its lab down\n", tb.Name())
				l.Dump(func(f string, a ...any) { fmt.Fprintf(os.Stderr, f+"\n", a...) })
				_ = l.Close()
			})
		}
	}
	tb.Cleanup(func() {
		if timer != nil {
			timer.Stop()
		}
		if tb.Failed() {
			l.Dump(tb.Logf)
		}
		release()
		if err := l.Close(); err != nil {
			tb.Errorf("close lab: %v", err)
		}
	})
	return l
}

// Open makes a lab for a program. It first removes what labs of dead processes left behind.
func Open(opts Options) (*Lab, error) {
	if err := Sweep(); err != nil {
		return nil, err
	}
	l := &Lab{opts: opts, forks: make(chan func(home int)), done: make(chan struct{})}
	if err := l.register(); err != nil {
		return nil, err
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open own namespace: %w", err), l.Close())
	}
	l.forker.Go(func() { l.forkLoop(home) })
	return l, nil
}

// Supported tries to make a namespace, as every lab will.
func Supported() error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare network namespace: %w", err)
		}
		return nil
	})
}

// Name is what the lab's namespaces begin with.
func (l *Lab) Name() string { return l.name }

// Dir is a scratch directory that goes with the lab. Its path is short enough for unix sockets.
func (l *Lab) Dir() string { return l.dir }

// Context ends when the lab does.
func (l *Lab) Context() context.Context { return l.ctx }

// Hosts lists all that was made, pods, routers and switches too, in order.
func (l *Lab) Hosts() []*Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.hosts)
}

// Links lists every link in the order made.
func (l *Lab) Links() []*Link {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.links)
}

// Keep leaves the lab standing when the program ends: Close then only lets go of it. Remove takes it down later.
func (l *Lab) Keep() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := os.WriteFile(filepath.Join(l.dir, keepFile), nil, 0o600); err != nil {
		return fmt.Errorf("keep lab: %w", err)
	}
	l.kept = true
	return nil
}

// Close takes everything down; further calls wait for the first.
func (l *Lab) Close() error {
	var err error
	l.closing.Do(func() {
		l.cancel()
		l.forker.Wait() // what is being started is there to be killed then, and nothing follows it
		l.mu.Lock()
		captures, procs, hosts, kept := l.captures, l.procs, l.hosts, l.kept
		l.mu.Unlock()
		for _, c := range captures {
			c.Stop()
		}
		if !kept {
			for _, p := range procs {
				p.killGroup()
			}
			err = demolish(l.dir)
			for _, p := range procs {
				<-p.Done()
			}
		}
		for _, h := range hosts {
			h.release()
		}
		err = errors.Join(err, l.lock.Close())
		close(l.done)
	})
	<-l.done
	return err
}

// must ends the test or the program when err is not nil.
func (l *Lab) must(err error, format string, args ...any) {
	if err == nil {
		return
	}
	what := fmt.Sprintf(format, args...)
	if l.opts.Fatalf != nil {
		l.opts.Fatalf("netlab: %s: %v", what, err)
	}
	panic(Failure{fmt.Errorf("%s: %w", what, err)})
}

// Dump tells what a person needs after a failure: the last words of each process, and where captures were written.
func (l *Lab) Dump(logf func(string, ...any)) {
	const lines = 40
	l.mu.Lock()
	procs, captures := slices.Clone(l.procs), slices.Clone(l.captures)
	l.mu.Unlock()
	for _, p := range procs {
		if p.cmd.Process == nil || p.quiet {
			continue
		}
		logf("%s: %s (%s)\n%s", p.host.name, p, p.state(), indent(Tail(p.Stdout()+p.Stderr(), lines)))
	}
	for _, c := range captures {
		if path, err := c.WriteTemp(); err == nil && path != "" {
			logf("capture %s: %d packets, the last in %s", c.name, c.Count(), path)
		}
	}
}

// Tail is the last n lines of s.
func Tail(s string, n int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-n):], "\n")
}

func indent(s string) string { return "    " + strings.ReplaceAll(s, "\n", "\n    ") }

// closeOnSignal closes the lab on SIGINT and SIGTERM and then lets the signal take its course.
func (l *Lab) closeOnSignal() (release func()) {
	open.add(l)
	return func() { open.remove(l) }
}

// open holds the labs that a signal must close. Signals are the one thing of a process that cannot be told apart by lab:
// the process may only die when the last of them is down.
var open guard

type guard struct {
	mu   sync.Mutex
	labs map[*Lab]struct{}
	sig  chan os.Signal
}

func (g *guard) add(l *Lab) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.labs == nil {
		g.labs = make(map[*Lab]struct{})
	}
	g.labs[l] = struct{}{}
	if g.sig == nil {
		g.sig = make(chan os.Signal, 1)
		signal.Notify(g.sig, unix.SIGINT, unix.SIGTERM)
		go g.watch(g.sig)
	}
}

func (g *guard) remove(l *Lab) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.labs, l)
	if len(g.labs) == 0 && g.sig != nil {
		signal.Stop(g.sig)
		close(g.sig)
		g.sig = nil
	}
}

func (g *guard) watch(c <-chan os.Signal) {
	sig, ok := <-c
	if !ok {
		return
	}
	fmt.Fprintf(os.Stderr, "netlab: %v, taking the labs down\n", sig)
	g.mu.Lock() // and keep it: no lab may open from now on
	var wg sync.WaitGroup
	for l := range g.labs {
		wg.Go(func() { _ = l.Close() })
	}
	wg.Wait()
	signal.Reset(sig)
	_ = unix.Kill(os.Getpid(), sig.(unix.Signal))
	runtime.Goexit()
}
