package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// connPair is two ends of a control connection; only a writes by itself.
func connPair(t testing.TB) (a, b *conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	end := func(fd int) *conn {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		u, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		c := newConn(u.(*net.UnixConn), newQueue())
		c.limit = maxBody
		t.Cleanup(c.release)
		t.Cleanup(c.close)
		return c
	}
	a, b = end(fds[0]), end(fds[1])
	var wg sync.WaitGroup
	wg.Go(func() { _ = a.write() })
	t.Cleanup(func() {
		a.close()
		wg.Wait()
	})
	return a, b
}

// Frames of all sizes, datagrams among them and descriptors on some arrive whole, in order and with their own.
func TestFramesOfAllSizesArrive(t *testing.T) {
	a, b := connPair(t)
	const frames = 300
	sizes := []int{0, 1, 11, 12, 4095, 4096, 4097, 70000, 300000}
	rnd := rand.New(rand.NewPCG(1, 2))
	want := make([][]byte, frames)
	for i := range want {
		want[i] = bytes.Repeat([]byte{byte(i)}, sizes[rnd.IntN(len(sizes))])
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for i := 0; i < frames; {
			var fds []int
			for range i % 3 {
				f, err := os.CreateTemp(t.TempDir(), "passed")
				if err != nil {
					t.Error(err)
					return
				}
				_ = binary.Write(f, binary.BigEndian, uint32(i))
				fd, err := duplicate(f)
				f.Close()
				if err != nil {
					t.Error(err)
					return
				}
				fds = append(fds, fd)
			}
			a.bulk.push(Datagram{Data: []byte{1}})
			err := a.post(kind(1000+i), uint32(i), want[i], fds...)
			if err == nil {
				i++
			} else if !errors.Is(err, errBusy) {
				t.Error(err)
				return
			} else {
				runtime.Gosched() // the reader drains it
			}
		}
	})
	for i := 0; i < frames; {
		f, err := b.next()
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		if f.kind == kindDatagram {
			continue
		}
		if f.kind != kind(1000+i) || f.id != uint32(i) || !bytes.Equal(f.body, want[i]) || len(f.fds) != i%3 {
			t.Fatalf("frame %d is %+v with %d bytes and %d descriptors", i, f.header, len(f.body), len(f.fds))
		}
		for _, fd := range f.fds {
			got := make([]byte, 4)
			if _, err := unix.Pread(fd, got, 0); err != nil || binary.BigEndian.Uint32(got) != uint32(i) {
				t.Fatalf("frame %d has the descriptor of another: %x, %v", i, got, err)
			}
		}
		closeFDs(f.fds)
		i++
	}
}

func TestBytesOfOneFrameAreWipedBeforeTheNext(t *testing.T) {
	a, b := connPair(t)
	if err := errors.Join(a.post(1, 1, []byte("secret")), a.post(2, 2, nil)); err != nil {
		t.Fatal(err)
	}
	f, err := b.next()
	if err != nil || string(f.body) != "secret" {
		t.Fatalf("%q, %v", f.body, err)
	}
	if _, err := b.next(); err != nil {
		t.Fatal(err)
	}
	if string(f.body) == "secret" {
		t.Error("the bytes are still there")
	}
}

func TestAReaderThatSleepsIsGivenUp(t *testing.T) {
	a, _ := connPair(t)
	var err error
	for range 10 * maxOut {
		if err = a.post(1, 1, make([]byte, 10000)); err != nil {
			break
		}
	}
	if !errors.Is(err, errBusy) {
		t.Errorf("frames pile up without end: %v", err)
	}
}

func TestACloseDropsDescriptorsOnTheirWay(t *testing.T) {
	before := descriptors(t, os.Getpid())
	t.Run("pair", func(t *testing.T) {
		a, b := connPair(t)
		for range 20 {
			fd, err := duplicate(os.Stdin)
			if err != nil {
				t.Fatal(err)
			}
			_ = a.post(1, 1, make([]byte, 50000), fd)
		}
		if f, err := b.next(); err != nil {
			t.Fatal(err)
		} else {
			closeFDs(f.fds)
		}
	})
	// The handle of a process that another test waited for may close meanwhile.
	eventually(t, fmt.Sprintf("no more descriptors are open than before: %s", before), func() bool {
		return len(descriptors(t, os.Getpid())) <= len(before)
	})
}

// serveHere runs a server in this process, with its rights, until stop is called or a controller stops it.
func serveHere(socket string) (done <-chan struct{}, stop func() error, err error) {
	ln, err := bind(socket)
	if err != nil {
		return nil, nil, err
	}
	s, err := newServer(slog.New(slog.DiscardHandler), "test", uint32(os.Geteuid()))
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	var failed error
	go func() {
		defer close(ended)
		failed = s.run(ctx, ln)
	}()
	return ended, func() error {
		cancel()
		<-ended
		return errors.Join(failed, os.Remove(socket))
	}, nil
}

// Whatever follows a hello: the server reads on or ends the connection, and serves the next one.
func FuzzControl(f *testing.F) {
	for _, k := range []kind{
		kindStop, kindIdentity, kindPeers, kindTunnels, kindLocal, kindUDP, kindTCP, kindTUN, kindFiles,
		kindDatagram, kindStats, kindHello, 999,
	} {
		for _, b := range samples(f) {
			f.Add(append(appendHeader(nil, header{size: len(b), version: protocol, kind: k, id: 9}), b...))
		}
	}
	socket := filepath.Join(f.TempDir(), "s")
	done, stop, err := serveHere(socket)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := stop(); err != nil {
			f.Error(err)
		}
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		select {
		case <-done: // an input said stop
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			if done, stop, err = serveHere(socket); err != nil {
				t.Fatal(err)
			}
		default:
		}
		u, err := dial(t.Context(), socket)
		if err != nil {
			return // stopping
		}
		defer u.Close()
		hello := appendHelloRequest(nil, "fuzz")
		greeting := append(appendHeader(nil, header{size: len(hello), version: protocol, kind: kindHello, id: 1}), hello...)
		_ = u.SetDeadline(time.Now().Add(patience))
		if _, err := u.Write(slices.Concat(greeting, b)); err != nil {
			return
		}
		_ = u.CloseWrite()
		if _, err := io.Copy(io.Discard, u); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the server hangs")
		}
	})
}
