package main

import (
	"fmt"
	"math"
	"slices"
)

// estimate is the median of a sample and the interval that holds the median of what the sample was drawn from.
type estimate struct {
	median, low, high float64
	n                 int
}

// confidence is what the interval shall have, as far as the sample is large enough (six or more).
const confidence = 0.95

// estimateOf orders xs in place.
func estimateOf(xs []float64) estimate {
	n := len(xs)
	if n == 0 {
		return estimate{median: math.NaN(), low: math.NaN(), high: math.NaN()}
	}
	slices.Sort(xs)
	k := rank(n)
	return estimate{median: (xs[(n-1)/2] + xs[n/2]) / 2, low: xs[k], high: xs[n-1-k], n: n}
}

// rank is how many values may be left out at each end so that what is between still holds the median with the confidence:
// how many of n draws fall below the median is binomial with one half, whatever is drawn from.
func rank(n int) int {
	k, below, chance := 0, 0.0, math.Pow(0.5, float64(n))
	for ; k < n/2; k++ {
		if below += chance; 2*below > 1-confidence {
			break
		}
		chance = chance * float64(n-k) / float64(k+1)
	}
	return max(k-1, 0)
}

// level is the confidence that the interval of n values really has.
func level(n int) float64 {
	below, chance := 0.0, math.Pow(0.5, float64(n))
	for k := range rank(n) + 1 {
		below += chance
		chance = chance * float64(n-k) / float64(k+1)
	}
	return max(1-2*below, 0)
}

// percentile of ordered values: the smallest that at least p of them do not exceed.
func percentile(xs []float64, p float64) float64 {
	if len(xs) == 0 {
		return math.NaN()
	}
	return xs[max(int(math.Ceil(p*float64(len(xs))))-1, 0)]
}

// String is the ratio as the table shows it.
func (e estimate) String() string {
	if e.n == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f [%.2f, %.2f]", e.median, e.low, e.high)
}
