package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/test/cluster"
	"weft/test/netlab"
)

// Speed is not tested. What is: that each contender carries packets, and that each quantity is measured on it.
func TestEveryContenderIsMeasured(t *testing.T) {
	lab := netlab.New(t) // skips without the rights
	dir := t.TempDir()
	if err := netlab.Build(dir, "weft/cmd/weft", "weft/test/labprobe"); err != nil {
		t.Fatal(err)
	}
	o := options{programs: cluster.Programs{Weft: filepath.Join(dir, "weft"), Probe: filepath.Join(dir, "labprobe")}}
	if err := o.compile(dir); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	var said strings.Builder
	o.duels = duels(false)
	bd := &bed{Lab: lab, options: o}
	all, err := bd.assemble(ctx, &said)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(said.String())
	for _, name := range []string{nameSleeve, nameWireguard, namePlain} {
		if all[name] == nil {
			t.Fatalf("there is no %s", name)
		}
	}
	for name, c := range all {
		c.cable.SetSegmentation(false)
		c.cable.SetCoalescing(true)
		got := sample{}
		for what := range measureSilent + 1 {
			if err := bd.add(got, c, what, 500*time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
		for _, q := range quantities() {
			// CPU time is counted in hundredths of a second: a measurement as short as this one may see none.
			if v, ok := got[q.name]; !strings.HasSuffix(q.name, "CPU") && !(v > 0) || len(c.pids) > 0 && !ok {
				t.Errorf("%s: %s is %v", name, q.name, v)
			}
		}
	}
}

func TestOwnMemoryAndTimeAreRead(t *testing.T) {
	if m, err := memoryMiB(os.Getpid(), resident); err != nil || m < 1 || m > 1<<12 {
		t.Errorf("%v MiB, %v", m, err)
	}
	for start := time.Now(); ; {
		d, err := cpuTime(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if d > 0 {
			break
		}
		if time.Since(start) > time.Minute {
			t.Fatal("a minute of work took no CPU time")
		}
	}
	if _, err := cpuTimes([]int{os.Getpid(), 1 << 30}); err == nil {
		t.Error("a process that is not there has CPU time")
	}
}

func TestTableTellsRatiosOfPairs(t *testing.T) {
	var o options
	if err := o.choose("", "no such pair", ""); err == nil {
		t.Error("a pair was picked that is not there")
	}
	if err := o.choose("", "", ""); err == nil {
		t.Error("no pairs were accepted")
	}
	o = options{pairs: 3, length: time.Second}
	if err := o.choose("TCP 1 flow", "", ""); err != nil || o.life || len(o.quantities) != 3 {
		t.Fatalf("chosen %v, %v", o, err)
	}
	tb := newTable(duel{of: nameSleeve, against: nameWireguard}, o)
	// The middle ratio is 2, though the medians are 3 and 2.
	pair := func(x, y, cost float64) round {
		return round{sample{qFlow: x, qFlowCPU: cost}, sample{qFlow: y, qFlowCPU: 1}}
	}
	tb.fill(columnOff, []round{pair(3, 2, 0.7), pair(2, 1, 0.65), pair(10, 4, 0.61)})
	var out strings.Builder
	tb.print(&out)
	got := strings.Fields(out.String()[strings.Index(out.String(), "bar\n")+4:])
	want := strings.Fields("TCP 1 flow Gbit/s 3.00 / 2.00 2.00 [1.50, 2.50] ≥1.6 met " +
		"TCP 1 flow, CPU CPU-s/GiB 0.65 / 1.00 0.65 [0.61, 0.70] ≤0.6 MISSED")
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %q\nwant %q\n%s", got, want, out.String())
	}
}

func TestBarsAreHeldByTheMedian(t *testing.T) {
	e := estimate{median: 0.8, low: 0.6, high: 0.95, n: 6}
	for want, bar := range map[string]float64{"≥0.8 met": 0.8, "≥0.9 open": 0.9, "≥1 MISSED": 1} {
		if got := e.against(bar, false); got != want {
			t.Errorf("%v against %g: %s, want %s", e, bar, got, want)
		}
	}
	for want, bar := range map[string]float64{"≤0.8 met": 0.8, "≤0.7 open": 0.7, "≤0.5 MISSED": 0.5} {
		if got := e.against(bar, true); got != want {
			t.Errorf("%v against at most %g: %s, want %s", e, bar, got, want)
		}
	}
}
