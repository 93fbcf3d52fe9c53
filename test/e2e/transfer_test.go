package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"weft/test/cluster"
)

// transfer is one TCP connection between two pods, which carries bytes that nobody can guess until it is ended.
type transfer struct {
	moved   atomic.Int64 // bytes that arrived
	stop    chan struct{}
	ended   sync.WaitGroup
	sent    [sha256.Size]byte
	got     [sha256.Size]byte
	err     [2]error
	mu      sync.Mutex
	last    time.Time
	longest time.Duration // without a byte
}

// pace keeps a transfer from taking the machine for itself: 16 KiB each 4 ms are 4 MiB a second.
const (
	paceBytes = 16 << 10
	paceEvery = 4 * time.Millisecond
)

// transfer starts one.
func (s *story) transfer(from, to *cluster.Pod, addr netip.Addr) *transfer {
	s.Helper()
	l, err := to.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	s.must(err)
	defer l.Close()
	out, err := from.Dial(s.within(patience), "tcp", l.Addr().String())
	s.must(err)
	in, err := l.Accept()
	s.must(err)
	t := &transfer{stop: make(chan struct{}), last: time.Now()}
	t.ended.Go(func() { t.send(out) })
	t.ended.Go(func() { t.receive(in) })
	s.Cleanup(func() {
		_, _ = out.Close(), in.Close()
		t.ended.Wait()
	})
	return t
}

func (t *transfer) send(c net.Conn) {
	sum, block := sha256.New(), make([]byte, paceBytes)
	random := rand.NewChaCha8([32]byte{1})
	tick := time.NewTicker(paceEvery)
	defer tick.Stop()
	for {
		select {
		case <-t.stop:
			t.sent = [sha256.Size]byte(sum.Sum(nil))
			t.err[0] = c.(*net.TCPConn).CloseWrite()
			return
		case <-tick.C:
		}
		_, _ = random.Read(block)
		sum.Write(block)
		if _, err := c.Write(block); err != nil {
			t.err[0] = err
			return
		}
	}
}

func (t *transfer) receive(c net.Conn) {
	sum, block := sha256.New(), make([]byte, 256<<10)
	for {
		n, err := c.Read(block)
		sum.Write(block[:n])
		t.moved.Add(int64(n))
		t.mu.Lock()
		now := time.Now()
		t.longest, t.last = max(t.longest, now.Sub(t.last)), now
		t.mu.Unlock()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.err[1] = err
			}
			t.got = [sha256.Size]byte(sum.Sum(nil))
			return
		}
	}
}

// flows waits until so much more has arrived.
func (s *story) flows(t *transfer, more int64) {
	s.Helper()
	want := t.moved.Load() + more
	s.must(cluster.Poll(s.within(startPatience), func() error {
		if now := t.moved.Load(); now < want {
			return fmt.Errorf("%d bytes more than %d did not arrive", more, want-more)
		}
		return nil
	}))
}

// stall is the longest time without a byte since it was asked last.
func (t *transfer) stall() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.longest
	t.longest = 0
	return d
}

// finish ends the transfer and checks that what arrived is what was sent.
func (s *story) finish(t *transfer) {
	s.Helper()
	close(t.stop)
	t.ended.Wait()
	if t.err != [2]error{} || t.sent != t.got {
		s.Errorf("a transfer of %d bytes: sent %x, got %x, errors %v", t.moved.Load(), t.sent[:4], t.got[:4], t.err)
	}
}

// pinged is what became of a flood of pings.
type pinged struct {
	Sent, Received uint64
	LongestGap     float64 `json:"longest_gap"` // seconds without an answer
}

// pinging has a pod ping another so many times a second, until the function that it returns is called.
func (s *story) pinging(from, to *cluster.Pod, rate int) (result func() pinged) {
	s.Helper()
	const longest = 5 * time.Minute
	c := from.Command(programs.Probe, "flood", "-json", "-rate", strconv.Itoa(rate), "-for", longest.String(), "-w", "5s",
		to.Addrs[0].String()).Quiet()
	s.must(c.Start())
	return func() (r pinged) {
		s.Helper()
		_ = c.Stop(startPatience)
		s.must(json.Unmarshal([]byte(c.Stdout()), &r))
		return r
	}
}
