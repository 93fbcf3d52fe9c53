package sleeve

import (
	"net/netip"
	"slices"
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

// TestStrangersShareOneBudget: from however many networks handshakes come, they get so many answers and no more. Who comes from
// where a peer is, or has proven where it is, is answered all the same.
func TestStrangersShareOneBudget(t *testing.T) {
	l, now := newLimits(), time.Unix(0, 0)
	stranger := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 1}) }
	got := map[worth]int{}
	const many = 5000
	for i := range many {
		got[l.admit(stranger(i), false, false, false, now)]++
	}
	if got[worthAll] != strangerBurst || got[worthCookie] != strangerBurst || got[worthNothing] != many-2*strangerBurst {
		t.Errorf("of %d strangers: %v", many, got)
	}
	if !l.spent(false, now) || l.spent(true, now) {
		t.Error("strangers have something left, or peers have not")
	}
	for _, c := range []struct {
		name           string
		proven, loaded bool
		want           []worth
	}{
		{"from where a peer is", false, false, []worth{worthAllFirst, worthCookieFirst, worthNothing}},
		{"from there, when many wait", false, true, []worth{worthNothing}}, // the others had all its cookies
		{"with a cookie", true, true, []worth{worthAllFirst, worthNothing}},
	} {
		var seen []worth
		for range many {
			if w := l.admit(stranger(0), c.proven, true, c.loaded, now); len(seen) == 0 || seen[len(seen)-1] != w {
				seen = append(seen, w)
			}
		}
		if !slices.Equal(seen, c.want) {
			t.Errorf("%s: %v, want %v", c.name, seen, c.want)
		}
	}
	if w := l.admit(stranger(0), false, false, true, now.Add(time.Second)); w != worthCookie {
		t.Errorf("a stranger while many wait is worth %v, want a cookie", w)
	}
}

// TestPeersAddressesAreNoFreePass: who forges the addresses of all members of a large cluster gets a bounded number of answers
// that cost much, and then cookies.
func TestPeersAddressesAreNoFreePass(t *testing.T) {
	l, now := newLimits(), time.Unix(0, 0)
	got := map[worth]int{}
	for i := range 5000 {
		got[l.admit(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), false, true, false, now)]++
	}
	if got[worthAllFirst] != strangerBurst || got[worthCookieFirst] != strangerBurst {
		t.Errorf("from where peers are: %v", got)
	}
}

// TestFloodIsWeighedBeforeItCosts: recorded handshakes, whose mac is right, are dropped without the hash once strangers have
// had their share; a stranger that proves its address is taken in meanwhile, however short the queue is.
func TestFloodIsWeighedBeforeItCosts(t *testing.T) {
	a, b := newHost(t, 1, Offload{}), newHost(t, 2, Offload{})
	mesh(t, a, b)
	up(t, a, b)
	h, n, now := &b.e.handshakes, b.e.node.Load(), time.Now()
	h.familiar.Store(nil)
	h.refresh(now)
	if !h.knows(a.addr.Addr()) {
		t.Errorf("b does not know %v, where a is", a.addr)
	}
	stranger := func(i int) path.Path {
		return path.Direct(netip.AddrPortFrom(netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 1}), 6783))
	}
	pending, recorded, err := noise.Initiate(a.e.node.Load().local, n.local.Key.Public(), 7, noise.Offer{Counter: 1, Ciphers: []uint8{1}, PSKs: []noise.ID{{1}}})
	if err != nil || pending == nil {
		t.Fatal(err)
	}
	wrong := slices.Clone(recorded)
	wrong[len(wrong)-17] ^= 1 // the last byte of mac1
	if _, why := h.weigh(n, wrong, stranger(0), now); why != dropMAC {
		t.Errorf("a handshake with a wrong mac is dropped for %v", why)
	}
	for i := 0; !h.limits.spent(false, now); i++ {
		h.limits.admit(stranger(i).Endpoint.Addr(), false, false, false, now)
	}
	for name, msg := range map[string][]byte{"a recorded handshake": recorded, "one with a wrong mac, which is not looked at": wrong} {
		if _, why := h.weigh(n, msg, stranger(1), now); why != dropRate {
			t.Errorf("%s is dropped for %v", name, why)
		}
	}
	if w, why := h.weigh(n, recorded, path.Direct(a.addr), now); w != worthAllFirst {
		t.Errorf("what comes from where a is is worth %v (%v)", w, why)
	}

	at := stranger(2)
	h.mu.Lock()
	reply := h.cookies.Reply(n.local.Key, recorded, at.Endpoint, now)
	h.mu.Unlock()
	var jar noise.Jar
	if err := jar.Put(reply, recorded, n.local.Key.Public(), now); err != nil {
		t.Fatal(err)
	}
	proof := slices.Clone(recorded)
	jar.Sign(proof, now)
	if w, why := h.weigh(n, proof, at, now); w != worthAllFirst {
		t.Errorf("a stranger that proves its address is worth %v (%v)", w, why)
	}
	if w, _ := h.weigh(n, proof, stranger(3), now); w == worthAllFirst {
		t.Error("a proof of one address is good for another")
	}

	for i := range repeatMost {
		h.weigh(n, recorded, stranger(i), now)
	}
	h.limits = newLimits()
	if _, why := h.weigh(n, proof, at, now); why != dropOldCounter {
		t.Errorf("a recording that came %d times is dropped for %v, though it proves an address", repeatMost, why)
	}
	if w, why := h.weigh(n, recorded, path.Direct(a.addr), now); w != worthAllFirst {
		t.Errorf("the same from where a is is worth %v (%v): it must not be judged by what strangers send", w, why)
	}
	_, fresh, err := noise.Initiate(a.e.node.Load().local, n.local.Key.Public(), 7, noise.Offer{Counter: 2, Ciphers: []uint8{1}, PSKs: []noise.ID{{1}}})
	if err != nil {
		t.Fatal(err)
	}
	if w, why := h.weigh(n, fresh, stranger(4), now); w != worthAll {
		t.Errorf("meanwhile a stranger that nobody has seen is worth %v (%v)", w, why)
	}
}

// BenchmarkStrangersHandshake is what one handshake of a flood costs the receive worker beyond taking it from the socket.
func BenchmarkStrangersHandshake(b *testing.B) {
	x, y := newHost(b, 1, Offload{}), newHost(b, 2, Offload{})
	h, n := &y.e.handshakes, y.e.node.Load()
	offer := noise.Offer{Counter: 1, Ciphers: []uint8{1}, PSKs: []noise.ID{{1}}}
	_, recorded, err := noise.Initiate(x.e.node.Load().local, n.local.Key.Public(), 7, offer)
	if err != nil {
		b.Fatal(err)
	}
	wrong, claims := slices.Clone(recorded), slices.Clone(recorded)
	wrong[len(wrong)-17] ^= 1 // the last byte of mac1
	claims[len(claims)-1] ^= 1
	from := path.Direct(netip.MustParseAddrPort("100.64.0.1:6783"))
	for name, c := range map[string]struct {
		msg   []byte
		spent bool
	}{
		"recorded":                        {recorded, true},
		"recorded, with a cookie made up": {claims, true},
		"of one who does not know us":     {wrong, false},
	} {
		b.Run(name, func(b *testing.B) {
			now := time.Now() // stands still, so nothing is given back
			for c.spent && !h.limits.spent(false, now) {
				h.limits.admit(from.Endpoint.Addr(), false, false, false, now)
			}
			if !c.spent {
				h.limits, h.repeats = newLimits(), repeats{}
			}
			b.ReportAllocs()
			for b.Loop() {
				h.weigh(n, c.msg, from, now)
			}
		})
	}
}
