package main

import (
	"net"
	"sync"
	"testing"
	"time"
)

func TestEveryByteIsCountedOverLoopback(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = drain(t.Context(), l) })
	defer wg.Wait()
	defer l.Close()
	for _, n := range []int{1, 3} {
		r, err := pour(t.Context(), l.Addr().String(), "", n, 50*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if r.Bytes == 0 || r.Seconds < 0.05 {
			t.Errorf("%d flows: %+v", n, r)
		}
	}
	if r, err := pour(t.Context(), l.Addr().String(), "no-such-control", 1, time.Millisecond); err == nil {
		t.Errorf("a congestion control that is not there: %+v", r)
	}
}

func TestASinkThatIsNotThereIsAnError(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if r, err := pour(t.Context(), l.Addr().String(), "", 2, 10*time.Millisecond); err == nil {
		t.Errorf("it is content: %+v", r)
	}
}
