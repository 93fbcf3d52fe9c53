package main

import (
	"net"
	"sync"
	"testing"
	"time"
)

func TestEveryPacketIsCountedOverLoopback(t *testing.T) {
	s, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	if err := enlarge(s); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = sink(s) })
	defer wg.Wait()
	defer s.Close()
	for _, size := range []int{64, 1400} {
		c, err := net.DialUDP("udp4", nil, s.LocalAddr().(*net.UDPAddr))
		if err != nil {
			t.Fatal(err)
		}
		r, err := source(c, size, 64, 50*time.Millisecond)
		c.Close()
		if err != nil {
			t.Fatal(err)
		}
		if r.Sent == 0 || r.Received != r.Sent || r.Seconds < 0.05 {
			t.Errorf("size %d: %+v", size, r)
		}
	}
}

func TestASilentSinkIsAnError(t *testing.T) {
	s, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, err := net.DialUDP("udp4", nil, s.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if r, err := source(c, 64, 64, 10*time.Millisecond); err == nil {
		t.Errorf("it is content: %+v", r)
	}
}
