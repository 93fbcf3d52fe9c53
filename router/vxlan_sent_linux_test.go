package router_test

import (
	"net/netip"
	"testing"
	"time"

	"weft/router/vxlan"
)

// The kernel tells when the device sent something to a peer last; by that one peer's traffic is told from another's.
func TestKernelTellsToWhomVXLANSent(t *testing.T) {
	l := newLab(t)
	n1, n2 := l.n[1], l.n[2]
	a, b := n1.pod("a", 10), n2.pod("b", 10)
	echo(t, b.NS, netip.AddrPortFrom(netip.IPv6Unspecified(), 7))
	mac := vxlan.MAC(id(2)).String()
	ago := func() time.Duration {
		t.Helper()
		sent, err := n1.host.Sent(t.Context(), vxlan.Device)
		if err != nil {
			t.Fatal(err)
		}
		ago, known := sent[mac]
		if !known {
			t.Fatalf("nothing is known of %s: %v", mac, sent)
		}
		return ago
	}
	reach(t, "a pod", a.NS, b.v4, a.v4.String())
	await(t, "a while without a packet", func() bool { return ago() > 300*time.Millisecond })
	begin := time.Now()
	reach(t, "a pod", a.NS, b.v4, a.v4.String())
	const tick = 20 * time.Millisecond // of the kernel's clock, twice
	if now := ago(); now > time.Since(begin)+tick {
		t.Errorf("a packet was sent within the last %s, the kernel says %s ago", time.Since(begin), now)
	}
}
