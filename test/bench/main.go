// Bench is `make bench`: it holds weft's sleeve and VXLAN against wireguard-go, the kernel's VXLAN made by hand and a plain
// cable, all on the same topology of network namespaces, and prints the table of ratios that the bars are set on; then how
// long an attach and a join take, what the daemon weighs, and what becomes of hundreds of attaches and detaches at once.
//
// A ratio is taken between two measurements made one right after the other, many times in one run, and told as the median of
// those ratios with its interval: what else the machine does hits both sides. Figures of a single run without its partner
// mean nothing, so none is kept. Speed is never a test: `go test` only checks that the laboratory works.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"weft/test/cluster"
	"weft/test/netlab"
)

func main() {
	var o options
	var only, pick, flood string
	quick := flag.Bool("quick", false, "three pairs, to look whether a change helps; says little")
	flag.StringVar(&o.programs.Weft, "weft", "bin/weft", "the program to measure")
	flag.StringVar(&o.programs.Probe, "labprobe", ".build/labprobe", "the program that makes traffic (test/labprobe)")
	flag.StringVar(&o.built, "built", "", "`folder` in which wireguard and blast of this folder are, built already; empty: build them")
	flag.IntVar(&o.pairs, "pairs", 10, "pairs of measurements for each ratio")
	flag.DurationVar(&o.length, "for", time.Second, "length of one measurement")
	flag.StringVar(&only, "only", "", "measure only what matches this expression: quantities, life, burst, and abuse")
	flag.StringVar(&pick, "pick", "", "compare only contenders whose pair matches this expression, such as 'sleeve / wireguard'")
	flag.StringVar(&o.column, "column", "", "only this column: off or on")
	flag.StringVar(&flood, "flood", "", "of abuse, only floods whose name matches this expression")
	flag.StringVar(&o.other, "other", "", "another build of weft: hold the sleeve against that one's, and nothing else")
	flag.StringVar(&o.congestion, "congestion", "cubic", "congestion control of the pods' TCP; empty: what this machine sets")
	flag.BoolVar(&o.verbose, "v", false, "print each pair")
	flag.Parse()
	if *quick {
		o.pairs = 3
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := o.choose(only, pick, flood)
	if err == nil {
		err = run(ctx, os.Stdout, o)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted; everything was taken down")
		}
		fmt.Fprintf(os.Stderr, "\nbench: %v\n", err)
		os.Exit(1)
	}
}

// options say what to measure, and how long.
type options struct {
	programs         cluster.Programs
	wireguard, blast string // programs of this folder
	built            string // where those are; empty: they have to be built
	other            string // another build of weft
	pairs            int
	length           time.Duration // of one measurement
	congestion       string        // control of TCP; empty: the machine's own
	quantities       []quantity
	duels            []duel
	column           string // empty: both
	life             bool
	burst            bool
	abuse            bool
	floods           *regexp.Regexp // which of abuse
	verbose          bool
}

// choose takes in what the person wants to see.
func (o *options) choose(only, pick, flood string) error {
	re, err := regexp.Compile("(?i)" + only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	picked, err := regexp.Compile("(?i)" + pick)
	if err != nil {
		return fmt.Errorf("-pick: %w", err)
	}
	if o.floods, err = regexp.Compile("(?i)" + flood); err != nil {
		return fmt.Errorf("-flood: %w", err)
	}
	o.duels = slices.DeleteFunc(duels(o.other != ""), func(d duel) bool { return !picked.MatchString(d.String()) })
	for _, q := range quantities() {
		if re.MatchString(q.name) {
			o.quantities = append(o.quantities, q)
		}
	}
	o.life = o.other == "" && pick == "" && re.MatchString("life")
	o.abuse = o.other == "" && pick == "" && re.MatchString("abuse")
	o.burst = o.other == "" && pick == "" && re.MatchString("burst")
	switch {
	case len(o.duels) == 0:
		return fmt.Errorf("-pick: nothing is called %q", pick)
	case o.pairs < 1 || o.length <= 0:
		return errors.New("want at least one pair, and some time")
	case o.column != "" && o.column != columnOff && o.column != columnOn:
		return fmt.Errorf("-column: want %s or %s", columnOff, columnOn)
	}
	return nil
}

func run(ctx context.Context, out io.Writer, o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root. Type:\n\n    sudo env \"PATH=$PATH\" make bench")
	}
	if err := netlab.Supported(); err != nil {
		return fmt.Errorf("this machine cannot make network namespaces: %w", err)
	}
	for _, p := range []*string{&o.programs.Weft, &o.programs.Probe, &o.other} {
		if *p == "" {
			continue
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
		if _, err := os.Stat(*p); err != nil {
			return fmt.Errorf("there is no program %q. Try: make bench", *p)
		}
	}
	// What the person has set for a real weft on this machine must not reach into the laboratory.
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "WEFT_") && !strings.HasPrefix(name, "WEFT_TEST_") {
			_ = os.Unsetenv(name)
		}
	}
	dir, err := os.MkdirTemp("", "weft-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := o.compile(dir); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s\n%s\n", machine(), versions(o.programs.Weft, o.wireguard))
	fmt.Fprintf(out, "%s\n%s\n%s", o.control(), load(), busy())
	if len(o.quantities) > 0 {
		if err := inLab(ctx, func(l *netlab.Lab) error { return speed(ctx, out, l, o) }); err != nil {
			return err
		}
	}
	if o.life {
		if err := inLab(ctx, func(l *netlab.Lab) error { return life(ctx, out, l, o) }); err != nil {
			return err
		}
	}
	if o.burst {
		if err := inLab(ctx, func(l *netlab.Lab) error { return burst(ctx, out, l, o) }); err != nil {
			return err
		}
	}
	if o.abuse {
		if err := inLab(ctx, func(l *netlab.Lab) error { return abuse(ctx, out, l, o) }); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, load())
	return nil
}

// compile builds what only the benchmark needs.
func (o *options) compile(dir string) error {
	if o.built != "" {
		dir = o.built
	}
	o.wireguard, o.blast = filepath.Join(dir, "wireguard"), filepath.Join(dir, "blast")
	if o.built != "" {
		return nil
	}
	return netlab.Build(dir, "weft/test/bench/wireguard", "weft/test/bench/blast")
}

// inLab plays f in a lab of its own, which is taken down whatever happens, at once when ctx ends.
func inLab(ctx context.Context, f func(*netlab.Lab) error) (err error) {
	lab, err := netlab.Open(netlab.Options{})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = lab.Close() })
	defer func() {
		stop()
		err = errors.Join(err, lab.Close())
	}()
	defer netlab.Recover(&err)
	if err := f(lab); err != nil {
		if ctx.Err() == nil {
			lab.Dump(func(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) })
		}
		return err
	}
	return nil
}
