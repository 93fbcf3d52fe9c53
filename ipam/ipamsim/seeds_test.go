package ipamsim_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/ipam/ipamsim"
)

// make sim sets these.
var (
	seeds  = flag.Uint64("seeds", 100, "how many lives TestSeeds plays")
	first  = flag.Uint64("first", 0, "the first seed")
	one    = flag.Int64("seed", -1, "the only seed: all that happens is logged")
	full   = flag.Bool("full", false, "crowds in their full size: 50 machines ten times, 200 joins")
	replay = flag.String("plan", "", "a file with a plan to play instead")
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(400) // lives are short
	os.Exit(m.Run())
}

// workers is how many lives are played at once.
const workers = 2

// TestSeeds plays lives and stops at the first rule that is broken.
func TestSeeds(t *testing.T) {
	switch {
	case *replay != "":
		b, err := os.ReadFile(*replay)
		if err != nil {
			t.Fatal(err)
		}
		p, err := ipamsim.Parse(string(b))
		if err != nil {
			t.Fatal(err)
		}
		r := ipamsim.Play(t, p, ipamsim.Options{Log: t.Logf})
		t.Log(r.Text())
		if r.Err != nil {
			t.Error(r.Err)
		}
		return
	case *one >= 0:
		report(t, ipamsim.Draw(uint64(*one)), ipamsim.Options{})
		return
	}
	var mu sync.Mutex // guards the rest
	next, last := *first, *first+*seeds
	var failed []uint64
	var sum ipamsim.Counts
	began := time.Now()
	take := func() (uint64, bool) {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next - 1, next <= last && len(failed) < 10
	}
	t.Run("lives", func(t *testing.T) {
		for worker := range workers {
			t.Run(fmt.Sprint(worker), func(t *testing.T) {
				t.Parallel()
				for seed, ok := take(); ok; seed, ok = take() {
					r := ipamsim.Play(t, ipamsim.Draw(seed), ipamsim.Options{})
					mu.Lock()
					sum = sum.Plus(r.Counts)
					if r.Err != nil {
						failed = append(failed, seed)
						t.Errorf("seed %d: %s", seed, r.Text())
					}
					mu.Unlock()
				}
			})
		}
	})
	played := min(next, last) - *first
	t.Logf("%d lives in %s, %.1f ms each: %+v", played, time.Since(began).Round(time.Second/10),
		float64(time.Since(began).Milliseconds())/float64(max(1, played)), sum)
	if len(failed) > 0 {
		report(t, ipamsim.Draw(slices.Min(failed)), ipamsim.Options{})
	}
}

// report plays a plan and, where a rule breaks, says how to see that again with as little as possible.
func report(t *testing.T, p ipamsim.Plan, o ipamsim.Options) {
	t.Helper()
	o.Log = t.Logf
	r := ipamsim.Play(t, p, o)
	t.Log(r.Text())
	if r.Err == nil {
		return
	}
	small := ipamsim.Shrink(t, p, o)
	path := filepath.Join(os.TempDir(), fmt.Sprintf("weft-sim-%d.plan", p.Seed))
	if err := os.WriteFile(path, []byte(small.String()), 0o600); err != nil {
		t.Error(err)
	}
	t.Errorf("%v\nmake sim SEED=%d plays it again; shrunk to %d steps, make sim PLAN=%s plays these:\n%s",
		r.Err, p.Seed, len(small.Steps), path, small)
}

func TestALifeIsAFunctionOfItsSeed(t *testing.T) {
	lives := make([]uint64, 60)
	for i := range lives {
		lives[i] = uint64(i)
	}
	if *full {
		lives = append(lives, 199) // of 200 machines
	}
	for _, seed := range lives {
		p := ipamsim.Draw(seed)
		a, b := ipamsim.Play(t, p, ipamsim.Options{}), ipamsim.Play(t, p, ipamsim.Options{})
		if a.Text() != b.Text() {
			t.Errorf("seed %d:\n%s\n%s", seed, a.Text(), b.Text())
		}
	}
}

func TestAPlanSurvivesItsText(t *testing.T) {
	for _, seed := range []uint64{0, 1, 7, 199} {
		p := ipamsim.Draw(seed)
		q, err := ipamsim.Parse(p.String())
		if err != nil {
			t.Fatal(err)
		}
		if p.String() != q.String() || len(p.Steps) != len(q.Steps) {
			t.Errorf("seed %d:\n%s\n%s", seed, p, q)
		}
	}
	if _, err := ipamsim.Parse("plan 1\n"); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Error(err)
	}
}
