// Demo is `make demo`: three machines on three subnets, made of network namespaces on this one, become a cluster by the
// join line that the first prints; pods on all of them ping, fetch pages and reach the world. It uses weft only as a
// person would, through its command line, and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"weft/test/netlab"
)

// labName is what `make demo-clean` looks for.
const labName = "weft-demo"

// longest is how long the whole demo may take before it is called stuck.
const longest = 10 * time.Minute

func main() {
	weft := flag.String("weft", "bin/weft", "the program to show")
	probe := flag.String("labprobe", "", "the program that pings and fetches (test/labprobe)")
	keep := flag.Bool("keep", os.Getenv("KEEP") != "" && os.Getenv("KEEP") != "0", "leave it standing")
	clean := flag.Bool("clean", false, "remove what an earlier run left standing, and nothing else")
	stream := flag.Duration("stream", 5*time.Second, "length of the throughput test")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	s := &screen{out: os.Stdout, tty: term.IsTerminal(int(os.Stdout.Fd()))}
	if err := run(ctx, s, options{name: labName, weft: *weft, probe: *probe, keep: *keep, clean: *clean, stream: *stream}); err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted; everything was taken down")
		}
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}

type options struct {
	name        string // of the lab
	weft, probe string
	keep, clean bool
	stream      time.Duration
}

func run(ctx context.Context, s *screen, o options) (err error) {
	if os.Geteuid() != 0 {
		target := "demo"
		if o.clean {
			target = "demo-clean"
		}
		return fmt.Errorf("network namespaces need root. Type:\n\n    sudo env \"PATH=$PATH\" make %s", target)
	}
	if o.clean {
		return cleanUp(s, o.name)
	}
	if o.weft, err = program(o.weft, "make build"); err != nil {
		return err
	}
	if o.probe, err = program(o.probe, "make demo"); err != nil {
		return err
	}
	if err := netlab.Supported(); err != nil {
		return fmt.Errorf("this machine cannot make network namespaces: %w", err)
	}
	if err := netlab.Sweep(); err != nil { // of one that was killed
		return err
	}
	switch stands, held := netlab.Find(o.name); {
	case held:
		return errors.New("another demo is running on this machine")
	case stands:
		return errors.New("an earlier demo was left standing. Remove it first: make demo-clean")
	}
	// What the person has set for a real weft on this machine must not reach into the demo.
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "WEFT_") {
			_ = os.Unsetenv(name)
		}
	}

	lab, err := netlab.Open(netlab.Options{Name: o.name})
	if err != nil {
		return err
	}
	closed := make(chan error, 1)
	// ^C takes the lab down at once; whatever step is running then ends with an error.
	stop := context.AfterFunc(ctx, func() { closed <- lab.Close() })
	d := &demo{screen: s, lab: lab, options: o}
	defer func() {
		if !stop() {
			err = errors.Join(err, <-closed)
			return
		}
		if err != nil {
			d.showFailure()
		}
		if o.keep {
			if kerr := lab.Keep(); kerr == nil {
				d.showKept()
			}
		}
		err = errors.Join(err, lab.Close())
	}()
	within, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	return d.play(within)
}

// program finds an executable, made absolute because processes start in directories of their own.
func program(path, hint string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if st, err := os.Stat(abs); path == "" || err != nil || st.Mode()&0o111 == 0 {
		return "", fmt.Errorf("there is no program %q. Try: %s", path, hint)
	}
	return abs, nil
}

func cleanUp(s *screen, name string) error {
	found, err := netlab.Remove(name)
	switch {
	case err != nil:
		return err
	case found:
		s.line("The demo was removed.")
	default:
		s.line("No demo was standing.")
	}
	return netlab.Sweep()
}
