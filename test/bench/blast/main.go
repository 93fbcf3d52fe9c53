// Blast measures how many UDP packets a path carries: a source keeps so many on the way as the sink lets it, so that the
// slowest part sets the pace and not the part that drops; or, with -tcp, how many bytes TCP flows bring over it. It prints
// one JSON object.
//
// A packet is a run (8 bytes), a number (8), flags (1) and padding. The sink answers every ackEvery-th packet, and each that
// asks for it, with the run, the highest number seen and how many came.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	headSize = 17
	ackSize  = 24
	ackEvery = 32
	maxFlows = 16
	batch    = 32 // packets of one system call, at both ends
	// sinkBuffer holds more than any window, so that the sink itself drops nothing.
	sinkBuffer = 4 << 20
)

// flagAnswer asks for an answer at once.
const flagAnswer = 1

func main() {
	listen := flag.String("listen", "", "be the sink at this address:port")
	to := flag.String("to", "", "be the source, send to this address:port")
	size := flag.Int("size", 1400, "payload bytes")
	length := flag.Duration("for", time.Second, "how long")
	window := flag.Int("window", 256, "packets on the way, at most")
	congestion := flag.String("congestion", "", "control of TCP; empty: the machine's own")
	tcp := flag.Int("tcp", 0, "so many TCP flows rather than UDP packets; any number makes a sink of TCP")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var err error
	if *tcp > 0 {
		err = runTCP(ctx, *listen, *to, *congestion, *tcp, *length)
	} else {
		err = run(ctx, *listen, *to, *size, *window, *length)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "blast:", err)
		os.Exit(1)
	}
}

func runTCP(ctx context.Context, listen, to, congestion string, n int, length time.Duration) error {
	// With processors to spare the scheduler leaves a thread in a system call alone; else its monitor never rests.
	runtime.GOMAXPROCS(runtime.NumCPU() + maxFlows)
	if listen == "" {
		r, err := pour(ctx, to, congestion, n, length)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(r)
	}
	l, err := net.Listen("tcp4", listen)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	fmt.Println("listening")
	if err := drain(ctx, l); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func run(ctx context.Context, listen, to string, size, window int, length time.Duration) error {
	switch {
	case listen != "":
		a, err := net.ResolveUDPAddr("udp4", listen)
		if err != nil {
			return err
		}
		c, err := net.ListenUDP("udp4", a)
		if err != nil {
			return err
		}
		if err := enlarge(c); err != nil {
			return err
		}
		defer context.AfterFunc(ctx, func() { c.Close() })()
		fmt.Println("listening")
		if err := sink(c); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	case size < headSize || window < 2*ackEvery:
		return fmt.Errorf("want a size of at least %d and a window of at least %d", headSize, 2*ackEvery)
	}
	a, err := net.ResolveUDPAddr("udp4", to)
	if err != nil {
		return err
	}
	c, err := net.DialUDP("udp4", nil, a)
	if err != nil {
		return err
	}
	defer c.Close()
	r, err := source(c, size, uint64(window), length)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// enlarge gives the sink its buffer, beyond what the machine allows to everybody where it has the right.
func enlarge(c *net.UDPConn) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return rc.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, sinkBuffer) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, sinkBuffer)
		}
	})
}
