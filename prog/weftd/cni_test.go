package weftd

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"weft/prog/control"
)

func TestOneRequestAtATimeWorksOnAnAttachment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h holds
		a, b := control.Attached{Container: "a", Ifname: "eth0"}, control.Attached{Container: "a", Ifname: "eth1"}
		take := func(a control.Attached, d time.Duration) (func(), error) {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			return h.take(ctx, a)
		}
		held := func() int {
			h.mu.Lock()
			defer h.mu.Unlock()
			return len(h.busy)
		}
		first, err := take(a, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if other, err := take(b, time.Second); err != nil {
			t.Errorf("another interface waits: %v", err)
		} else {
			other()
		}
		if _, err := take(a, time.Second); !errors.Is(err, control.Timeout) {
			t.Errorf("two at once: %v", err)
		}
		order := make(chan int, 8)
		for i := range cap(order) {
			go func() {
				release, err := take(a, time.Minute)
				if err != nil {
					t.Error(err)
					return
				}
				order <- i
				if n := held(); n != 1 {
					t.Errorf("%d hold it", n)
				}
				time.Sleep(time.Second)
				release()
			}()
		}
		start := time.Now()
		first()
		for range cap(order) {
			<-order
		}
		if took := time.Since(start); took != time.Duration(cap(order)-1)*time.Second {
			t.Errorf("eight requests of a second each began within %v", took)
		}
		time.Sleep(2 * time.Second)
		if n := held(); n != 0 {
			t.Errorf("%d are still held", n)
		}
	})
}

func TestALentAddressReachesItsGateway(t *testing.T) {
	blocks := []netip.Prefix{netip.MustParsePrefix("10.32.0.0/14"), netip.MustParsePrefix("10.44.0.0/16"), netip.MustParsePrefix("fd00::a20:0/110")}
	for _, c := range []struct {
		addr, gateway string
		bits          int
	}{
		{"10.33.1.2", "10.32.0.1", 14},
		{"10.44.1.2", "10.32.0.1", 12}, // the machine's own address lies in another block
		{"fd00::a21:102", "fd00::a20:1", 110},
		{"10.32.0.1", "10.32.0.1", 14},
	} {
		if got := bitsWith(blocks, netip.MustParseAddr(c.addr), netip.MustParseAddr(c.gateway)); got != c.bits {
			t.Errorf("%s and %s are in a /%d, want /%d", c.addr, c.gateway, got, c.bits)
		}
	}
}
