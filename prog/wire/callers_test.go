package wire

import (
	"net/netip"
	"testing"
	"time"
)

func TestCallersPayByAddress(t *testing.T) {
	var c callers
	now := time.Unix(0, 0)
	count := func(a string) (n int) {
		for range 3 * callBurst {
			if c.allow(netip.MustParseAddr(a), now) {
				n++
			}
		}
		return n
	}
	if n := count("192.0.2.1"); n != callBurst {
		t.Errorf("%d at once", n)
	}
	if n := count("::ffff:192.0.2.1"); n != 0 {
		t.Errorf("%d more from the same address", n)
	}
	if n := count("192.0.2.2"); n != callBurst {
		t.Errorf("%d from its neighbour", n)
	}
	if n := count("2001:db8::1") + count("2001:db8::2"); n != callBurst {
		t.Errorf("%d from one IPv6 network", n)
	}
	now = now.Add(time.Second)
	if n := count("192.0.2.1"); n != callRate {
		t.Errorf("%d a second later", n)
	}
	for i := range 3 * maxCallers {
		c.allow(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), now)
	}
	if len(c.all) > maxCallers {
		t.Errorf("%d addresses are remembered", len(c.all))
	}
	if !c.allow(netip.Addr{}, now) {
		t.Error("nobody is refused")
	}
}
