package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"sync"
	"time"
)

// streamResult counts what the sink has received, not what was sent.
type streamResult struct {
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
	Mbps    float64 `json:"mbit_per_s"`
	Flows   int     `json:"flows"`
}

func (r streamResult) String() string {
	return fmt.Sprintf("%.0f Mbit/s (%d flows, %d bytes in %.2f s)", r.Mbps, r.Flows, r.Bytes, r.Seconds)
}

func stream(ctx context.Context, fs *flag.FlagSet, args []string) (fmt.Stringer, error) {
	length := fs.Duration("for", 5*time.Second, "how long")
	flows := fs.Int("P", 1, "parallel connections")
	if err := parseFlags(fs, args, 1); err != nil {
		return nil, err
	}
	if *flows < 1 || *flows > 256 {
		return nil, usageError("flows must be between 1 and 256")
	}
	type result struct {
		bytes int64
		err   error
	}
	results := make([]result, *flows)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range results {
		wg.Go(func() { results[i].bytes, results[i].err = pour(ctx, fs.Arg(0), start.Add(*length)) })
	}
	wg.Wait()
	r := streamResult{Seconds: time.Since(start).Seconds(), Flows: *flows}
	var errs []error
	for _, f := range results {
		r.Bytes += f.bytes
		errs = append(errs, f.err)
	}
	r.Mbps = float64(r.Bytes) * 8 / 1e6 / r.Seconds
	return r, errors.Join(errs...)
}

// pour writes until the end and returns what the sink counted.
func pour(ctx context.Context, target string, end time.Time) (int64, error) {
	const patience = time.Minute
	d := net.Dialer{Timeout: patience}
	c, err := d.DialContext(ctx, "tcp", target)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	_ = c.SetDeadline(end.Add(patience))
	block := make([]byte, 256<<10)
	for time.Now().Before(end) {
		if _, err := c.Write(block); err != nil {
			return 0, fmt.Errorf("send to %s: %w", target, err)
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return 0, fmt.Errorf("end stream to %s: %w", target, err)
	}
	var n int64
	if _, err := fmt.Fscan(c, &n); err != nil {
		return 0, fmt.Errorf("hear from the sink at %s: %w", target, err)
	}
	return n, nil
}
