package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// probe runs one subcommand and returns what it printed.
func probe(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(t.Context(), args, &out, &err)
	return code, out.String(), err.String()
}

// freePorts are so many TCP ports that nobody listens on. None is of those that the kernel gives to whoever asks for any: one
// of them could be somebody's a moment later.
func freePorts(t *testing.T, n int) (ports []string) {
	t.Helper()
	const first, last = 10_000, 30_000 // the kernel's begin at 32,768
	for len(ports) < n {
		port := strconv.Itoa(first + rand.IntN(last-first))
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, port)
	}
	return ports
}

// startServe runs `serve` until the test ends and waits for its TCP ports.
func startServe(t *testing.T, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int)
	go func() {
		var out, err bytes.Buffer
		done <- run(ctx, append([]string{"serve"}, args...), &out, &err)
	}()
	t.Cleanup(func() {
		cancel()
		if code := <-done; code != 0 {
			t.Errorf("serve ended with %d", code)
		}
	})
	for i, a := range args {
		if a != "-http" && a != "-tcp" {
			continue
		}
		for {
			c, err := net.Dial("tcp", "127.0.0.1:"+args[i+1])
			if err == nil {
				_ = c.Close()
				break
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Fatal(err)
			}
		}
	}
}

func TestPageAndStream(t *testing.T) {
	free := freePorts(t, 2)
	web, sink := free[0], free[1]
	startServe(t, "-http", web, "-tcp", sink, "-page", "pod a1")
	code, out, errs := probe(t, "get", "http://127.0.0.1:"+web+"/", "http://127.0.0.1:"+web+"/x")
	if code != 0 || strings.Count(out, "pod a1, visitor from 127.0.0.1") != 2 {
		t.Errorf("get: %d\n%s%s", code, out, errs)
	}
	code, out, errs = probe(t, "stream", "-json", "-for", "1s", "-P", "2", "127.0.0.1:"+sink)
	var r streamResult
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 || r.Bytes == 0 || r.Flows != 2 {
		t.Errorf("stream: %d, %v\n%s%s", code, err, out, errs)
	}
}

func TestNoAnswer(t *testing.T) {
	port := freePorts(t, 1)[0]
	if code, out, _ := probe(t, "get", "-w", "200ms", "http://127.0.0.1:"+port+"/"); code != 1 || !strings.Contains(out, "refused") {
		t.Errorf("get: %d %s", code, out)
	}
	if code, _, errs := probe(t, "stream", "-for", "1ms", "127.0.0.1:"+port); code != 1 || !strings.Contains(errs, "refused") {
		t.Errorf("stream: %d %s", code, errs)
	}
}

func TestPingCountsEachAddress(t *testing.T) {
	if e, err := newICMP(netip.MustParseAddr("127.0.0.1"), netip.Addr{}); err != nil {
		t.Skipf("needs ICMP sockets: %v", err)
	} else {
		_ = e.close()
	}
	code, out, errs := probe(t, "ping", "-json", "-c", "5", "-i", "1ms", "-w", "1m", "127.0.0.1", "127.0.0.2")
	var rs pingResults
	if err := json.Unmarshal([]byte(out), &rs); err != nil || code != 0 || len(rs) != 2 {
		t.Fatalf("%d, %v\n%s%s", code, err, out, errs)
	}
	for _, r := range rs {
		if r.Sent != 5 || r.Received != 5 || r.RTT.Min <= 0 {
			t.Errorf("%+v", r)
		}
	}
}

func TestFloodOverUDP(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		buf := make([]byte, 2048)
		for n := 0; ; n++ {
			size, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if n >= 21 && n < 31 { // a hole of ten, after the greeting
				continue
			}
			_, _ = c.WriteTo(buf[:size], from)
		}
	}()
	code, out, errs := probe(t, "flood", "-json", "-proto", "udp", "-rate", "1000", "-for", "100ms", "-w", "1s", c.LocalAddr().String())
	var r floodResult
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 1 {
		t.Fatalf("%d, %v\n%s%s", code, err, out, errs)
	}
	if r.Sent != 100 || r.Received != 90 || !slices.Equal(r.Lost, []span{{20, 29}}) || r.LongestGap < 0.01 {
		t.Errorf("%+v", r)
	}
}

// lossyEcho answers at once, but for the numbers that it loses, on the clock of the bubble.
type lossyEcho struct {
	answers chan uint64
	lose    func(uint64) bool
}

func (e *lossyEcho) send(seq uint64, _ int) error {
	if !e.lose(seq) {
		e.answers <- seq
	}
	return nil
}

func (e *lossyEcho) receive(deadline time.Time) (uint64, time.Time, error) {
	select {
	case seq := <-e.answers:
		return seq, time.Now(), nil
	case <-time.After(time.Until(deadline)):
		return 0, time.Time{}, os.ErrDeadlineExceeded
	}
}

func (e *lossyEcho) close() error { return nil }

func TestFloodEndsEarlyAndStillReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		e := &lossyEcho{answers: make(chan uint64, 16), lose: func(n uint64) bool { return n >= 300 && n < 500 }}
		r := floodAt(ctx, e, 10_000, 56, time.Millisecond, time.Second)
		if r.Sent < 990 || r.Sent > 1010 || r.Received != r.Sent-200 {
			t.Errorf("sent %d, received %d", r.Sent, r.Received)
		}
		if r.LongestGap < 0.2 || !slices.Equal(r.Lost, []span{{300, 499}}) {
			t.Errorf("gap %v, lost %v", r.LongestGap, r.Lost)
		}
	})
}

func TestWrongUseIsExplained(t *testing.T) {
	for _, args := range [][]string{
		{},
		{"pong"},
		{"ping"},
		{"ping", "nowhere"},
		{"ping", "-c", "x", "127.0.0.1"},
		{"flood", "-rate", "0", "127.0.0.1"},
		{"flood", "-proto", "tcp", "127.0.0.1"},
		{"stream", "-P", "0", "127.0.0.1:1"},
		{"get"},
		{"flood", "-proto", "udp", "127.0.0.1"},
	} {
		if code, out, errs := probe(t, args...); code != 2 || out != "" || !strings.Contains(errs, "usage: labprobe") {
			t.Errorf("%v: %d %q %q", args, code, out, errs)
		}
	}
}
