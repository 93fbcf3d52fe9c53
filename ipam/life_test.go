package ipam

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam/space"
)

// one runs an allocator alone in a bubble, over a store that the test holds.
func one(t *testing.T, prefix string, change func(*Config), story func(t *testing.T, a *Allocator, disk *memory)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newCluster(t, 1, prefix, max(26, netip.MustParsePrefix(prefix).Bits())).nodes[0]
		cfg := n.config()
		cfg.Log = slog.New(slog.DiscardHandler)
		if change != nil {
			change(&cfg)
		}
		a, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := a.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		defer wg.Wait()
		defer cancel()
		synctest.Wait()
		story(t, a, n.disk)
	})
}

// slow is a store whose every commit takes a while, as a disk's does.
type slow struct {
	*memory
	commits atomic.Int32
}

func (s *slow) Commit(ops []Op) error {
	s.commits.Add(1)
	time.Sleep(10 * time.Millisecond) // of the bubble
	return s.memory.Commit(ops)
}

func TestClaimsThatComeTogetherShareATransaction(t *testing.T) {
	disk := &slow{memory: newMemory()}
	one(t, "10.0.0.0/20", func(c *Config) { c.Store = disk }, func(t *testing.T, a *Allocator, _ *memory) {
		const many = 100
		before := disk.commits.Load()
		var mu sync.Mutex
		given := make(map[netip.Addr]string)
		var wg sync.WaitGroup
		for i := range many {
			wg.Go(func() {
				name := fmt.Sprint("c", i/2) // each twice
				c, err := a.Claim(t.Context(), Request{Container: name, IfName: "eth0"})
				mu.Lock()
				defer mu.Unlock()
				if err != nil || given[c.V4] != "" && given[c.V4] != name {
					t.Errorf("%s got %s, which %q has: %v", name, c.V4, given[c.V4], err)
				}
				given[c.V4] = name
			})
		}
		wg.Wait()
		if n := disk.commits.Load() - before; n > 4 || len(given) != many/2 {
			t.Errorf("%d commits for %d addresses", n, len(given))
		}
		before = disk.commits.Load()
		for i := range many / 2 {
			wg.Go(func() {
				if released, err := a.Release(t.Context(), fmt.Sprint("c", i), ""); err != nil || len(released) != 1 {
					t.Errorf("released %v: %v", released, err)
				}
			})
		}
		wg.Wait()
		if n := disk.commits.Load() - before; n > 4 || len(a.Claims()) != 0 {
			t.Errorf("%d commits, %d claims left", n, len(a.Claims()))
		}
	})
}

func TestAFailedTransactionGivesNobodyAnything(t *testing.T) {
	one(t, "10.0.0.0/24", nil, func(t *testing.T, a *Allocator, disk *memory) {
		disk.mu.Lock()
		disk.failAt = disk.commits + 1
		disk.mu.Unlock()
		var wg sync.WaitGroup
		var failed atomic.Int32
		for i := range 20 {
			wg.Go(func() {
				if _, err := a.Claim(t.Context(), Request{Container: fmt.Sprint(i), IfName: "eth0"}); err != nil {
					failed.Add(1)
				}
			})
		}
		wg.Wait()
		used := a.Status().Used
		if n := failed.Load(); n == 0 || len(a.Claims()) != 20-int(n) || used != len(a.Claims())+1 {
			t.Errorf("%d failed, %d claims, %d in use", n, len(a.Claims()), used)
		}
		for i := range 20 { // and nothing is lost for ever
			if _, err := a.Claim(t.Context(), Request{Container: fmt.Sprint(i), IfName: "eth0"}); err != nil {
				t.Error(err)
			}
		}
	})
}

// A claim whose caller has gone away at the moment that it is served is either the caller's or nobody's.
func TestNoClaimIsLeftByACallerThatWentAway(t *testing.T) {
	disk := &slow{memory: newMemory()}
	one(t, "10.0.0.0/24", func(c *Config) { c.Store = disk }, func(t *testing.T, a *Allocator, _ *memory) {
		for wait := range 30 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(wait)*time.Millisecond)
			var wg sync.WaitGroup
			wg.Go(func() { _, _ = a.Claim(t.Context(), Request{Container: "other", IfName: "eth0"}) })
			c, err := a.Claim(ctx, Request{Container: "gone", IfName: "eth0"})
			cancel()
			wg.Wait()
			if left, ok := a.find("gone"); ok != (err == nil) || ok && left.V4 != c.V4 {
				t.Fatalf("after %d ms: told %v, %v, and %v is left", wait, c.V4, err, left)
			}
			for _, name := range []string{"gone", "other"} {
				if _, err := a.Release(t.Context(), name, ""); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(2 * defaultCoolFor)
		}
	})
}

func (a *Allocator) find(container string) (Claim, bool) {
	for _, c := range a.Claims() {
		if c.Container == container {
			return c, true
		}
	}
	return Claim{}, false
}

func TestAnAddressThatLingersIsNotGivenAgain(t *testing.T) {
	var lingers atomic.Bool
	change := func(c *Config) { c.Lingers = func(netip.Addr) bool { return lingers.Load() } }
	one(t, "10.0.0.0/29", change, func(t *testing.T, a *Allocator, disk *memory) {
		claim := func(name, address string) (Claim, error) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			r := Request{Container: name, IfName: "eth0"}
			if address != "" {
				r.Address = netip.MustParseAddr(address)
			}
			return a.Claim(ctx, r)
		}
		for i := range 5 {
			if _, err := claim(fmt.Sprint(i), ""); err != nil {
				t.Fatal(err)
			}
		}
		lingers.Store(true)
		if _, err := a.Release(t.Context(), "0", ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		for _, address := range []string{"", "10.0.0.2"} {
			if c, err := claim("next", address); err == nil {
				t.Errorf("gave %s although its former interface is there", c.V4)
			}
		}
		if stored := len(disk.copy().disk[tableRest]); stored != 1 {
			t.Errorf("%d addresses rest on disk", stored)
		}
		lingers.Store(false)
		if err := a.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		if c, err := claim("next", ""); err != nil || c.V4.String() != "10.0.0.2" {
			t.Errorf("gave %s, %v", c.V4, err)
		}
	})
}

func TestAnAddressIsKeptByHand(t *testing.T) {
	one(t, "10.0.0.0/24", nil, func(t *testing.T, a *Allocator, _ *memory) {
		hand := Request{Container: "web", IfName: NoInterface, Address: netip.MustParseAddr("10.0.0.77")}
		for range 2 {
			if c, err := a.Claim(t.Context(), hand); err != nil || !c.ByHand() {
				t.Fatalf("%+v, %v", c, err)
			}
		}
		pod := Request{Container: "other", IfName: "eth0", NetNS: "/run/netns/other", Address: hand.Address}
		if _, err := a.Claim(t.Context(), pod); !errors.Is(err, ErrTaken) {
			t.Errorf("another pod got it: %v", err)
		}
		pod.Container, pod.NetNS = "web", "/run/netns/web"
		if c, err := a.Claim(t.Context(), pod); err != nil || c.V4 != hand.Address || c.ByHand() || len(a.Claims()) != 1 {
			t.Errorf("the pod that it was kept for got %+v, %v; claims %+v", c, err, a.Claims())
		}
		if released, err := a.Release(t.Context(), "web", NoInterface); err != nil || len(released) != 0 {
			t.Errorf("released %v, %v: it is the pod's now", released, err)
		}
	})
}

func TestAStrayIsRenumberedInOneStep(t *testing.T) {
	one(t, "10.0.0.0/24", nil, func(t *testing.T, a *Allocator, disk *memory) {
		old, err := a.Claim(t.Context(), Request{Container: "web", IfName: "eth0", NetNS: "/run/netns/web", Inode: 7, Pod: "p"})
		if err != nil {
			t.Fatal(err)
		}
		if before, after, err := a.Renumber(t.Context(), "web", "eth0"); err != nil || before != old || after != old {
			t.Errorf("renumbered what is ours: %v", err)
		}
		// Its block becomes somebody else's.
		if err := a.do(t.Context(), func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.space.SetBlocks([]netip.Prefix{netip.MustParsePrefix("10.0.0.128/25")})
		}); err != nil {
			t.Fatal(err)
		}
		if strays := a.Strays(); len(strays) == 0 || a.Status().Reason == "" {
			t.Fatalf("strays %v, status %+v", strays, a.Status())
		}
		before, after, err := a.Renumber(t.Context(), "web", "eth0")
		if err != nil || before != old || !netip.MustParsePrefix("10.0.0.128/25").Contains(after.V4) ||
			after.V6 != space.Linked(linked6, after.V4) || after.Inode != 7 || after.Pod != "p" || !after.Created.Equal(old.Created) {
			t.Errorf("renumbered %+v to %+v, %v", before, after, err)
		}
		if claims := a.Claims(); len(claims) != 1 || claims[0] != after {
			t.Errorf("claims %+v", claims)
		}
		stored := disk.copy().disk[tableClaim]
		if _, ok := stored[string(after.V4.AsSlice())]; !ok || len(stored) != 2 {
			t.Errorf("on disk: %d claims, the new one among them: %v", len(stored), ok)
		}
	})
}

// A pod that is attached again while its address is a stray must not come back under it.
func TestAStrayThatIsClaimedAgainIsRenumbered(t *testing.T) {
	one(t, "10.0.0.0/24", nil, func(t *testing.T, a *Allocator, _ *memory) {
		req := Request{Container: "web", IfName: "eth0", NetNS: "/run/netns/web"}
		old, err := a.Claim(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.do(t.Context(), func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.space.SetBlocks([]netip.Prefix{netip.MustParsePrefix("10.0.0.128/25")})
		}); err != nil {
			t.Fatal(err)
		}
		if c, err := a.Claim(t.Context(), req); err != nil || c.V4 == old.V4 || len(a.Claims()) != 1 {
			t.Errorf("got %+v, %v", c, err)
		}
	})
}

// While this node has free addresses a pod's start waits for nobody, whether others are asked for more at that moment or
// not; when it has none, whoever asks is told who might have helped.
func TestNoPodWaitsForTheNetworkWhileAddressesAreFree(t *testing.T) {
	simulate(t, sized(3, "10.0.0.0/24", 30), func(t *testing.T, c *cluster) {
		n := c.nodes[1]
		n.mustClaim("first")
		c.nodes[2].mustClaim("first")
		time.Sleep(10 * time.Second) // all know who owns what
		c.part(0, 1, 2)              // all alone
		for i := 0; n.up().Status().Free > 0; i++ {
			begin := time.Now()
			n.mustClaim(fmt.Sprint("c", i))
			if took := time.Since(begin); took > 0 {
				t.Fatalf("claim %d took %s with %d addresses free", i, took, n.up().Status().Free)
			}
		}
		begin := time.Now()
		_, err := n.claim("more", 5*time.Second)
		if took := time.Since(begin); err == nil || took > 5*time.Second {
			t.Errorf("after %s: %v", took, err)
		}
		if want := "no peer can lend in 10.0.0.0/24: 2 unreachable (n1, n3)"; !strings.Contains(err.Error(), want) {
			t.Errorf("says %q, want %q", err, want)
		}
		c.part()
	})
}
