package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	block = 256 << 10       // what one system call moves of a TCP flow
	stuck = 5 * time.Second // for one of them
)

// flows is what the sink has received, and how long it took until it had said so.
type flows struct {
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

// blocking turns a connection into a descriptor that blocks, with a limit of time for each call: a call for each block and
// nothing else, as the traffic shares the processors with what carries it. end is called when both are done with.
func blocking(ctx context.Context, c net.Conn) (fd int, end func(), err error) {
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		return 0, nil, err
	}
	fd = int(f.Fd()) // sets it to block
	limit := unix.NsecToTimeval(stuck.Nanoseconds())
	for _, o := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, o, &limit); err != nil {
			_ = f.Close()
			return 0, nil, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = unix.Shutdown(fd, unix.SHUT_RDWR) })
	return fd, func() { stop(); _ = f.Close() }, nil
}

// drain reads and forgets what comes on each connection, and answers its end with the number of bytes. It ends with the
// listener.
func drain(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		wg.Go(func() {
			defer c.Close()
			fd, end, err := blocking(ctx, c)
			if err != nil {
				return
			}
			defer end()
			var sum int64
			for b := make([]byte, block); ; {
				n, err := unix.Read(fd, b)
				if errors.Is(err, unix.EINTR) {
					continue
				}
				if err != nil || n == 0 {
					break
				}
				sum += int64(n)
			}
			_, _ = unix.Write(fd, fmt.Appendln(nil, sum))
		})
	}
}

// pour sends on n connections for so long.
func pour(ctx context.Context, to, congestion string, n int, length time.Duration) (r flows, err error) {
	counts, errs := make([]int64, n), make([]error, n)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range n {
		wg.Go(func() { counts[i], errs[i] = pourOne(ctx, to, congestion, start.Add(length)) })
	}
	wg.Wait()
	r.Seconds = time.Since(start).Seconds()
	for _, n := range counts {
		r.Bytes += n
	}
	return r, errors.Join(errs...)
}

func pourOne(ctx context.Context, to, congestion string, until time.Time) (sum int64, err error) {
	d := net.Dialer{Timeout: stuck}
	c, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	fd, end, err := blocking(ctx, c)
	if err != nil {
		return 0, err
	}
	defer end()
	if congestion != "" {
		if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion); err != nil {
			return 0, fmt.Errorf("set congestion control %q: %w", congestion, err)
		}
	}
	var sent int64
	for b := make([]byte, block); sent == 0 || time.Now().Before(until); {
		n, err := unix.Write(fd, b)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("send to %s: %w", to, err)
		}
		sent += int64(max(n, 0))
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return 0, fmt.Errorf("end what is sent to %s: %w", to, err)
	}
	if _, err := fmt.Fscan(io.LimitReader(fdReader(fd), 32), &sum); err != nil {
		return 0, fmt.Errorf("hear from the sink at %s: %w", to, err)
	}
	if sum != sent {
		return 0, fmt.Errorf("the sink at %s counted %d of %d bytes", to, sum, sent)
	}
	return sum, nil
}

// fdReader reads a descriptor that blocks.
type fdReader int

func (fd fdReader) Read(b []byte) (int, error) {
	for {
		switch n, err := unix.Read(int(fd), b); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}
