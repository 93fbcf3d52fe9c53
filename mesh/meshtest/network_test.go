package meshtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/peer"
)

var a, b = peer.ID{1}, peer.ID{2}

func pair(t *testing.T, c Conditions) (*Network, *Port, *Port, chan net.Conn) {
	t.Helper()
	n := New(c, 1)
	pa, pb := n.Port(a), n.Port(b)
	got := make(chan net.Conn, 10)
	pb.Serve(func(_ context.Context, from peer.ID, kind byte, conn net.Conn) {
		if from != a || kind != 'x' {
			t.Errorf("a stream from %v of kind %q", from, kind)
		}
		got <- conn
	})
	return n, pa, pb, got
}

func TestDatagramsAreDelayedAndLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, pa, pb, _ := pair(t, Conditions{Delay: time.Second, Loss: 0.5})
		defer n.Close()
		start := time.Now()
		for range 1000 {
			if err := pa.Send(b, []byte("hello")); err != nil {
				t.Fatal(err)
			}
		}
		if from, got, err := pb.Receive(t.Context()); err != nil || from != a || string(got) != "hello" {
			t.Errorf("%v %q %v", from, got, err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("it took %v", took)
		}
		synctest.Wait()
		if lost := n.Stats().Lost; lost < 400 || lost > 600 {
			t.Errorf("%d of 1000 lost", lost)
		}
	})
}

func TestStreamsCarryInOrderThroughCuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, pa, _, got := pair(t, Conditions{Delay: 10 * time.Millisecond, Jitter: 30 * time.Millisecond, Loss: 0.3})
		defer n.Close()
		near, err := pa.Dial(t.Context(), b, 'x')
		if err != nil {
			t.Fatal(err)
		}
		far := <-got
		sent := make([]byte, 0, 10_000)
		for i := range 100 {
			piece := bytes.Repeat([]byte{byte(i)}, 100)
			if _, err := near.Write(piece); err != nil {
				t.Fatal(err)
			}
			sent = append(sent, piece...)
			time.Sleep(time.Millisecond)
		}
		n.CutOneWay(a, b)
		near.Close()
		time.Sleep(time.Minute)
		n.Mend()
		if b, err := io.ReadAll(far); err != nil || !bytes.Equal(b, sent) {
			t.Errorf("%d bytes of %d, %v", len(b), len(sent), err)
		}
		if _, err := near.Write([]byte{1}); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("writing after closing: %v", err)
		}
		far.Close()
	})
}

func TestDeadlinesAndDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, pa, pb, got := pair(t, Conditions{Delay: 10 * time.Millisecond})
		defer n.Close()
		near, err := pa.Dial(t.Context(), b, 'x')
		if err != nil {
			t.Fatal(err)
		}
		far := <-got
		near.SetReadDeadline(time.Now().Add(time.Second))
		start := time.Now()
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		near.SetReadDeadline(time.Time{})
		if _, err := far.Write([]byte("late")); err != nil {
			t.Fatal(err)
		}
		if n, err := near.Read(make([]byte, 9)); n != 4 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		n.CutOneWay(b, a)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := pa.Dial(ctx, b, 'x'); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dialling over a cut: %v", err)
		}
		n.Mend()
		pb.Close()
		if _, err := pa.Dial(t.Context(), b, 'x'); err == nil {
			t.Error("a closed port was dialled")
		}
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the other end went away: %v", err)
		}
		if _, _, err := pb.Receive(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("receiving at a closed port: %v", err)
		}
	})
}
