package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
)

const (
	stall    = 5 * time.Millisecond // without an answer: the last packets, or their answer, were lost
	patience = 2 * time.Second      // for the last word of the sink
)

type result struct {
	Sent     uint64  `json:"sent"`
	Received uint64  `json:"received"`
	Seconds  float64 `json:"seconds"`
}

// heard is what the sink has said.
type heard struct {
	top, count atomic.Uint64
	news       chan struct{}
}

func (h *heard) listen(c *net.UDPConn, run uint64) {
	var b [ackSize]byte
	for {
		n, err := c.Read(b[:])
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil || n != ackSize || binary.BigEndian.Uint64(b[:]) != run {
			continue
		}
		h.top.Store(binary.BigEndian.Uint64(b[8:]))
		h.count.Store(binary.BigEndian.Uint64(b[16:]))
		select {
		case h.news <- struct{}{}:
		default:
		}
	}
}

// source sends for so long, and then asks what came.
func source(c *net.UDPConn, size int, window uint64, length time.Duration) (r result, err error) {
	run := uint64(time.Now().UnixNano())
	h := heard{news: make(chan struct{}, 1)}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.SetReadDeadline(time.Now())
	wg.Go(func() { h.listen(c, run) })

	out := make([]ipv4.Message, batch)
	for i := range out {
		b := make([]byte, size)
		binary.BigEndian.PutUint64(b, run)
		out[i].Buffers = [][]byte{b}
	}
	pc := ipv4.NewPacketConn(c)
	// send sends up to n packets with the next numbers.
	send := func(n int, flags byte) error {
		for i := range n {
			b := out[i].Buffers[0]
			binary.BigEndian.PutUint64(b[8:], r.Sent+uint64(i)+1)
			b[16] = flags
		}
		n, err := pc.WriteBatch(out[:n], 0)
		if err != nil {
			return err
		}
		r.Sent += uint64(n)
		return nil
	}
	wait := time.NewTimer(stall)
	start := time.Now()
	for time.Since(start) < length {
		// Lost packets leave the window when a later one is answered, or by the stall.
		if free := window - min(window, r.Sent-h.top.Load()); free > 0 {
			if err := send(int(min(free, batch)), 0); err != nil {
				return r, fmt.Errorf("send: %w", err)
			}
			continue
		}
		wait.Reset(stall)
		select {
		case <-h.news:
		case <-wait.C:
			if err := send(1, flagAnswer); err != nil {
				return r, fmt.Errorf("send: %w", err)
			}
		}
	}
	for asked := time.Now(); ; {
		if err := send(1, flagAnswer); err != nil {
			return r, fmt.Errorf("send: %w", err)
		}
		last := r.Sent
		wait.Reset(stall)
		for tick := false; !tick; {
			select {
			case <-h.news:
				if h.top.Load() >= last {
					r.Received, r.Seconds = h.count.Load(), time.Since(start).Seconds()
					return r, nil
				}
			case <-wait.C:
				tick = true
			}
		}
		if time.Since(asked) > patience {
			return r, errors.New("the sink does not answer")
		}
	}
}
