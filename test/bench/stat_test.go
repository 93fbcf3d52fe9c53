package main

import (
	"math"
	"math/rand/v2"
	"testing"
)

// The ranks of the tables of the sign test: 95 % leaves out so many at each end.
func TestIntervalHasTheRanksOfTheSignTest(t *testing.T) {
	for n, want := range map[int]int{1: 0, 3: 0, 5: 0, 6: 0, 8: 0, 9: 1, 10: 1, 11: 1, 12: 2, 15: 3, 20: 5, 30: 9, 40: 13} {
		if got := rank(n); got != want {
			t.Errorf("rank(%d) = %d, want %d", n, got, want)
		}
	}
	for n, want := range map[int]float64{1: 0, 3: 0.75, 6: 0.96875, 10: 0.978515625} {
		if got := level(n); math.Abs(got-want) > 1e-12 {
			t.Errorf("level(%d) = %v, want %v", n, got, want)
		}
	}
}

func TestEstimate(t *testing.T) {
	e := estimateOf([]float64{9, 1, 2, 8, 3, 7, 4, 6, 5, 100})
	if e.median != 5.5 || e.low != 2 || e.high != 9 || e.n != 10 {
		t.Errorf("%+v", e)
	}
	if e := estimateOf(nil); !math.IsNaN(e.median) || e.String() != "-" {
		t.Errorf("%+v", e)
	}
}

// The interval holds the true median at least as often as it says, for a skewed distribution too.
func TestIntervalCoversTheMedian(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const runs, n = 4000, 10
	held := 0
	for range runs {
		xs := make([]float64, n)
		for i := range xs {
			xs[i] = rng.ExpFloat64()
		}
		if e := estimateOf(xs); e.low <= math.Ln2 && math.Ln2 <= e.high {
			held++
		}
	}
	if share := float64(held) / runs; share < confidence {
		t.Errorf("held the median in %.3f of the runs", share)
	}
}

func TestPercentile(t *testing.T) {
	xs := make([]float64, 50)
	for i := range xs {
		xs[i] = float64(i + 1)
	}
	for p, want := range map[float64]float64{0: 1, 0.5: 25, 0.99: 50, 1: 50} {
		if got := percentile(xs, p); got != want {
			t.Errorf("percentile %v = %v, want %v", p, got, want)
		}
	}
}
