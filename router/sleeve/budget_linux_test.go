package sleeve

import (
	"net/netip"
	"testing"
	"time"

	"weft/crypto/noise"
	"weft/mesh/path"
)

func TestBudgetFillsUpAgainAtItsRate(t *testing.T) {
	b := newBudget(strangerHandshakes)
	now := time.Unix(0, 0)
	taken := func() (n int) {
		for range 10 * strangerBurst {
			if b.take(now) {
				n++
			}
		}
		return n
	}
	if n := taken(); n != strangerBurst {
		t.Errorf("%d at once, want %d", n, strangerBurst)
	}
	now = now.Add(100 * time.Millisecond)
	if n := taken(); n != strangerHandshakes/10 {
		t.Errorf("%d a tenth of a second later, want %d", n, strangerHandshakes/10)
	}
	now = now.Add(time.Hour)
	if n := taken(); n != strangerBurst {
		t.Errorf("%d after an hour, want %d", n, strangerBurst)
	}
}

// TestStrangersShareOneBudget: from however many networks handshakes come, they get so many answers and no more, and a peer
// whose address is familiar is answered all the same.
func TestStrangersShareOneBudget(t *testing.T) {
	a, b := newHost(t, 1, Offload{}), newHost(t, 2, Offload{})
	mesh(t, a, b)
	up(t, a, b)
	h := &b.e.handshakes
	now := time.Now()
	h.familiar.Store(nil)
	h.refresh(now)
	stranger := func(i int) path.Path {
		return path.Direct(netip.AddrPortFrom(netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 1}), 6783))
	}
	if !h.knows(a.addr.Addr()) || h.knows(stranger(1).Endpoint.Addr()) {
		t.Errorf("b knows %v, a is at %v", h.familiar.Load().addrs, a.addr)
	}
	initiation := make([]byte, noise.MinInitiation)
	initiation[0] = noise.TypeInitiation

	l := newLimits()
	before := b.e.drops.snapshot()
	const many = 5000
	for i := range many {
		h.one(knock{b: initiation, from: stranger(i)}, l, now)
	}
	after := b.e.drops.snapshot()
	// So many were looked at in full, so many got a cookie, the rest nothing.
	cookies := after[dropCookie.String()] - before[dropCookie.String()]
	refused := after[dropRate.String()] - before[dropRate.String()]
	if cookies != strangerBurst || refused != many-2*strangerBurst {
		t.Errorf("%d cookies and %d without an answer, of %d", cookies, refused, many)
	}
	h.one(knock{b: initiation, from: stranger(0), known: true}, l, now)
	if n := b.e.drops.snapshot()[dropRate.String()]; n != after[dropRate.String()] {
		t.Error("who comes from where a peer is pays out of the strangers' budget")
	}
}
