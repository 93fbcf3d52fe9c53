package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// floodResult says what came back and what did not.
type floodResult struct {
	Sent       uint64  `json:"sent"`
	Received   uint64  `json:"received"`
	Duplicates uint64  `json:"duplicates"`
	Refused    uint64  `json:"refused"`     // the kernel did not take them
	LongestGap float64 `json:"longest_gap"` // seconds during which no request was answered
	Lost       []span  `json:"lost"`        // runs of numbers that never came back, at most 100
}

type span struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

func (r floodResult) String() string {
	var b strings.Builder
	_, _ = fmt.Fprintf(&b, "sent %d, received %d, lost %d, duplicates %d, longest gap %.3f s",
		r.Sent, r.Received, r.Sent-r.Received, r.Duplicates, r.LongestGap)
	for _, l := range r.Lost {
		_, _ = fmt.Fprintf(&b, " [%d-%d]", l.From, l.To)
	}
	return b.String()
}

// flood sends until its time is over or it is told to end (SIGINT, SIGTERM), and then reports.
func flood(ctx context.Context, fs *flag.FlagSet, args []string) (fmt.Stringer, error) {
	rate := fs.Int("rate", 1000, "requests per second")
	length := fs.Duration("for", 10*time.Second, "how long")
	proto := fs.String("proto", "icmp", "icmp, or udp to a `labprobe serve -udp`")
	size := fs.Int("s", 56, "payload bytes")
	wait := fs.Duration("w", time.Second, "how long to wait for the last answers")
	if err := parseFlags(fs, args, 1); err != nil {
		return nil, err
	}
	if *rate < 1 || *rate > 1_000_000 {
		return nil, usageError("rate must be between 1 and 1,000,000")
	}
	e, err := openEcho(*proto, fs.Arg(0))
	if err != nil {
		return nil, err
	}
	defer e.close() //nolint:errcheck // the answers are in
	pause := time.Second / time.Duration(*rate)
	r := floodAt(ctx, e, int(*length/pause), *size, pause, *wait)
	if r.Received < r.Sent || r.Refused > 0 {
		return r, errLost
	}
	return r, nil
}

func openEcho(proto, target string) (echoer, error) {
	switch proto {
	case "icmp":
		a, err := netip.ParseAddr(target)
		if err != nil {
			return nil, usageError(err.Error())
		}
		return newICMP(a.Unmap(), netip.Addr{})
	case "udp":
		a, err := netip.ParseAddrPort(target)
		if err != nil {
			return nil, usageError(err.Error())
		}
		return newUDP(a)
	}
	return nil, usageError("proto must be icmp or udp")
}

// greeting is the number of a request before the first, which is not counted.
const greeting = 1 << 60

// greet sends one request alone and waits a second for its answer. Of several packets of a new flow that are on different
// processors at once the kernel's connection tracking loses one now and then, which says nothing about the network.
func greet(ctx context.Context, e echoer, size int) {
	if e.send(greeting, size) != nil {
		return
	}
	for end := time.Now().Add(time.Second); time.Now().Before(end) && ctx.Err() == nil; {
		if seq, _, err := e.receive(time.Now().Add(pollAnswers)); err == nil && seq == greeting {
			return
		}
	}
}

// pollAnswers is how long is waited for an answer before other things are looked at.
const pollAnswers = 50 * time.Millisecond

func floodAt(ctx context.Context, e echoer, count, size int, pause, wait time.Duration) floodResult {
	greet(ctx, e, size)
	var r floodResult
	var seen tally
	sent := make(chan uint64, 1) // how many, when all are
	var wg sync.WaitGroup
	wg.Go(func() {
		var end time.Time
		total := uint64(count)
		last := time.Now()
		for seen.count < total {
			seq, _, err := e.receive(time.Now().Add(pollAnswers))
			now := time.Now()
			select {
			case total = <-sent:
				end = now.Add(wait)
			default:
			}
			switch {
			case err == nil && seq == greeting: // late
			case err == nil && seen.add(seq):
				r.LongestGap = max(r.LongestGap, now.Sub(last).Seconds())
				last = now
			case err == nil:
				r.Duplicates++
			case !errors.Is(err, os.ErrDeadlineExceeded):
				return
			}
			if err != nil && !end.IsZero() && now.After(end) { // what has come is read, however late we are
				// Waiting for the lost ones, after the last was sent, is no gap.
				r.LongestGap = max(r.LongestGap, end.Add(-wait).Sub(last).Seconds())
				return
			}
		}
	})
	r.Sent = steady(ctx, count, pause, func(seq uint64) {
		if e.send(seq, size) != nil {
			r.Refused++
		}
	})
	sent <- r.Sent
	wg.Wait()
	r.Received = seen.count
	r.Lost = seen.missing(r.Sent)
	return r
}

// missing lists the runs below n that never came.
func (t *tally) missing(n uint64) []span {
	const most = 100
	var out []span
	for i := uint64(0); i < n && len(out) < most; i++ {
		if i < uint64(len(t.seen)) && t.seen[i] {
			continue
		}
		if k := len(out) - 1; k >= 0 && out[k].To == i-1 {
			out[k].To = i
		} else {
			out = append(out, span{i, i})
		}
	}
	return out
}
