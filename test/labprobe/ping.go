package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// pingResult is about one address.
type pingResult struct {
	Addr     netip.Addr `json:"addr"`
	Sent     uint64     `json:"sent"`
	Received uint64     `json:"received"`
	RTT      rtts       `json:"rtt_ms"`
	Error    string     `json:"error,omitempty"`
}

type rtts struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

func (r pingResult) String() string {
	s := fmt.Sprintf("%v: sent %d, received %d, lost %d", r.Addr, r.Sent, r.Received, r.Sent-r.Received)
	if r.Received > 0 {
		s += fmt.Sprintf(", rtt %.3f/%.3f/%.3f ms (min/median/max)", r.RTT.Min, r.RTT.Median, r.RTT.Max)
	}
	if r.Error != "" {
		s += ", " + r.Error
	}
	return s
}

type pingResults []pingResult

func (rs pingResults) String() string {
	var lines []string
	for _, r := range rs {
		lines = append(lines, r.String())
	}
	return strings.Join(lines, "\n")
}

func ping(ctx context.Context, fs *flag.FlagSet, args []string) (fmt.Stringer, error) {
	count := fs.Int("c", 3, "requests to each address")
	pause := fs.Duration("i", 10*time.Millisecond, "pause between requests")
	wait := fs.Duration("w", time.Second, "how long to wait for the last answer")
	size := fs.Int("s", 56, "payload bytes")
	from := fs.String("from", "", "source address")
	fs.Bool("6", false, "ignored: the address says it")
	if err := parseFlags(fs, args, 1); err != nil {
		return nil, err
	}
	addrs, err := parseAddrs(fs.Args())
	if err != nil {
		return nil, err
	}
	var src netip.Addr
	if *from != "" {
		if src, err = netip.ParseAddr(*from); err != nil {
			return nil, usageError(err.Error())
		}
	}
	results := make(pingResults, len(addrs))
	var wg sync.WaitGroup
	for i, a := range addrs {
		wg.Go(func() { results[i] = pingOne(ctx, a, src, *count, *size, *pause, *wait) })
	}
	wg.Wait()
	for _, r := range results {
		if r.Received < r.Sent || r.Sent == 0 {
			return results, errLost
		}
	}
	return results, nil
}

func pingOne(ctx context.Context, dst, src netip.Addr, count, size int, pause, wait time.Duration) pingResult {
	r := pingResult{Addr: dst}
	e, err := newICMP(dst, src)
	if err != nil {
		r.Error = err.Error()
		return r
	}
	defer e.close() //nolint:errcheck // the answers are in
	var times []float64
	var seen tally
	last := time.Now().Add(time.Duration(count-1)*pause + wait)
	var wg sync.WaitGroup
	wg.Go(func() {
		late := false
		for until := last; seen.count < uint64(count); {
			seq, sent, err := e.receive(until)
			if errors.Is(err, os.ErrDeadlineExceeded) && !late { // what has come meanwhile is read, however late we are
				late, until = true, time.Now().Add(pollAnswers)
				continue
			}
			if errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
				return
			}
			if err == nil && seen.add(seq) {
				times = append(times, float64(time.Since(sent).Microseconds())/1000)
			}
		}
	})
	r.Sent = steady(ctx, count, pause, func(seq uint64) {
		if err := e.send(seq, size); err != nil {
			r.Error = err.Error()
		}
	})
	wg.Wait()
	r.Received = seen.count
	if len(times) > 0 {
		slices.Sort(times)
		r.RTT = rtts{times[0], times[len(times)/2], times[len(times)-1]}
	}
	return r
}

// A probe that got no CPU for a while catches up at this many times its rate: all at once would fill queues that hold what
// the rate that was asked for needs, and what is lost there is not the network's. Shorter pauses than napMin cannot be kept.
const (
	catchUp = 4
	napMin  = 200 * time.Microsecond
)

// steady calls f count times, the n-th at n pauses after the first whatever f costs, and returns how often it did.
func steady(ctx context.Context, count int, pause time.Duration, f func(seq uint64)) uint64 {
	start := time.Now()
	for seq := range uint64(count) {
		d := time.Until(start.Add(time.Duration(seq) * pause))
		if nap := pause / catchUp; d <= 0 && seq > 0 && nap >= napMin {
			d = nap
		}
		if d > 0 {
			select {
			case <-ctx.Done():
				return seq
			case <-time.After(d):
			}
		}
		f(seq)
	}
	return uint64(count)
}

// tally remembers which numbers came, each once.
type tally struct {
	seen  []bool
	count uint64
}

func (t *tally) add(seq uint64) bool {
	const most = 1 << 28
	if seq >= most {
		return false
	}
	for uint64(len(t.seen)) <= seq {
		t.seen = append(t.seen, make([]bool, 1+len(t.seen))...)
	}
	if t.seen[seq] {
		return false
	}
	t.seen[seq] = true
	t.count++
	return true
}
