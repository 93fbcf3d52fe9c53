package router_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"weft/mesh/peer"
	"weft/router"
	"weft/router/host"
	"weft/router/host/hosttest"
)

var pools = []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12"), netip.MustParsePrefix("fd77::/96")}

func id(i int) peer.ID { return peer.ID{byte(i)} }

func addr(format string, n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf(format, n)) }

func blocks(i int) []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(addr("10.32.%d.0", 4*i), 22), netip.PrefixFrom(addr("fd77::10.32.%d.0", 4*i), 118)}
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ router.Host = (*hosttest.Host)(nil)

// tunnels is a transport that keeps what it is told.
type tunnels struct {
	h      *hosttest.Host
	device string

	mu    sync.Mutex
	have  []router.Tunnel
	down  bool
	fails error
	again time.Duration
	looks int
}

func (t *tunnels) Apply(_ context.Context, want []router.Tunnel) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fails != nil {
		return t.fails
	}
	t.have = slices.Clone(want)
	return nil
}

func (t *tunnels) Links(context.Context) (out []router.Link, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.looks++
	for _, w := range t.have {
		out = append(out, router.Link{Peer: w.Peer, Up: !t.down, Endpoint: w.Endpoint, KeyAge: -1, Again: t.again})
	}
	return out, nil
}

// looked is how often it was asked since the last time.
func (t *tunnels) looked() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, t.looks = t.looks, 0
	return n
}

func (t *tunnels) Close() error { t.h.DropLink(t.device); return nil }

func (t *tunnels) set(down bool, fails error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.down, t.fails = down, fails
}

func (t *tunnels) peers() (out []peer.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, w := range t.have {
		out = append(out, w.Peer)
	}
	return out
}

// bench is a router on a fake machine with two transports.
type bench struct {
	*router.Router
	h          *hosttest.Host
	fast, slow *tunnels
	in         router.Input
}

func newBench(t *testing.T) *bench {
	t.Helper()
	h := hosttest.New(map[string]string{
		"net/ipv4/ip_forward": "0", "net/ipv6/conf/all/forwarding": "0",
		"net/ipv6/conf/eth0/accept_ra": "1", "net/ipv6/conf/eth1/accept_ra": "0",
	})
	h.AddLink(host.Link{Name: "eth0", Up: true, MTU: 1500})
	h.AddLink(host.Link{Name: "eth1", Up: true, MTU: 1500})
	b := &bench{h: h, fast: &tunnels{h: h, device: "weft-a"}, slow: &tunnels{h: h, device: "weft-b"}}
	driver := func(name string, tr *tunnels) router.Driver {
		return router.Driver{
			Name: name, Device: tr.device, Sealed: true, Checks: true,
			Open: func(context.Context) (router.Transport, error) {
				h.AddLink(host.Link{Name: tr.device, Kind: "tun", MTU: 1500})
				return tr, nil
			},
		}
	}
	r, err := router.New(router.Config{
		Host: h, Undo: filepath.Join(t.TempDir(), "undo.json"),
		Drivers: []router.Driver{driver("fast", b.fast), driver("slow", b.slow)},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Router = r
	b.in = router.Input{
		Self: id(1), Pools: pools, Blocks: blocks(1), Hosts: []netip.Addr{addr("10.32.4.%d", 1)},
		Peers: []router.Peer{{Blocks: blocks(2), Info: peer.Info{ID: id(2), Known: true, Transports: []string{"fast", "slow"}}}},
	}
	return b
}

// run keeps the router going inside a bubble until the returned function is called.
func (b *bench) run(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- b.Run(ctx) }()
	synctest.Wait()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func (b *bench) device(t *testing.T, dst netip.Prefix) string {
	t.Helper()
	s, err := b.h.Snapshot(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range s.Routes {
		if r.Dst == dst && r.Kind == host.Unicast {
			return r.Link
		}
	}
	return ""
}

func TestNothingMovesBeforeWhatRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		if _, err := b.Attach(t.Context(), router.AttachRequest{NetNS: "x", Pod: router.Pod{Name: "a", V4: addr("10.32.4.%d", 9)}}); !errors.Is(err, router.ErrNotReady) {
			t.Errorf("attach without a cluster: %v", err)
		}
		b.Update(b.in)
		// The pod comes before Run has done anything.
		if _, err := b.Attach(t.Context(), router.AttachRequest{NetNS: "x", Pod: router.Pod{Name: "a", V4: addr("10.32.4.%d", 9)}}); err != nil {
			t.Fatal(err)
		}
		defer b.run(t)()
		log := b.h.Log()
		order := []string{
			"set route unreachable 10.32.0.0/12", "set route unreachable fd77::/96", "filter",
			"set net/ipv6/conf/eth0/accept_ra = 2", "set net/ipv4/ip_forward = 1", "set net/ipv6/conf/all/forwarding = 1", "plug a/eth0",
			"set route 10.32.8.0/22 dev weft-a",
		}
		at := -1
		for _, want := range order {
			i := slices.IndexFunc(log, func(s string) bool { return strings.HasPrefix(s, want) })
			if i <= at {
				t.Errorf("%q is step %d, want it after step %d of:\n%s", want, i, at, strings.Join(log, "\n"))
			}
			at = max(at, i)
		}
		if slices.ContainsFunc(log, func(s string) bool { return strings.Contains(s, "eth1") }) {
			t.Error("an interface without router advertisements was touched")
		}
	})
}

func TestNothingMovesWithoutTheGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.h.Fail = func(change string) error {
			if strings.HasPrefix(change, "filter") {
				return errors.New("no nftables")
			}
			return nil
		}
		b.Update(b.in)
		if _, err := b.Attach(t.Context(), router.AttachRequest{NetNS: "x", Pod: router.Pod{Name: "a", V4: addr("10.32.4.%d", 9)}}); err == nil {
			t.Error("a pod was attached without a guard")
		}
		stop := b.run(t)
		for _, c := range b.h.Log() {
			if strings.Contains(c, "plug") || strings.Contains(c, "forward") || strings.Contains(c, "dev weft-") {
				t.Error(c)
			}
		}
		if s := b.Status(); s.Ready || !strings.Contains(s.Reason, "no nftables") {
			t.Errorf("status: %+v", s)
		}
		stop()
	})
}

func TestTransportsChangeByOneRoute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.Update(b.in)
		defer b.run(t)()
		if got := b.device(t, blocks(2)[0]); got != "weft-a" {
			t.Fatalf("by %q", got)
		}
		watch := b.Watch(t.Context())
		b.h.Log()
		b.fast.set(true, nil)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := b.device(t, blocks(2)[0]); got != "weft-b" {
			t.Fatalf("after silence by %q", got)
		}
		for _, c := range b.h.Log() {
			if !strings.HasPrefix(c, "set route") {
				t.Errorf("more than routes: %s", c)
			}
		}
		select {
		case <-watch:
		default:
			t.Error("the watcher was not told")
		}
		s := b.Status().Peers[0]
		if s.Transport != "slow" || len(s.Rejected) != 1 || s.Rejected[0].Transport != "fast" || s.Reason == "" {
			t.Errorf("status: %+v", s)
		}
		b.fast.set(false, nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := b.device(t, blocks(2)[0]); got != "weft-a" {
			t.Errorf("when it answers again: %q", got)
		}
	})
}

// A transport that wants it is looked at soon, the others are left in peace, and what it says is done at once.
func TestWhoWantsItIsLookedAtSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.fast.again = 100 * time.Millisecond
		b.Update(b.in)
		defer b.run(t)()
		time.Sleep(time.Second)
		b.fast.looked()
		b.slow.looked()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := b.fast.looked(); n < 90 || n > 125 {
			t.Errorf("looked at %d times in ten seconds, want each 100 ms", n)
		}
		if n := b.slow.looked(); n > 25 {
			t.Errorf("the other is looked at %d times, too", n)
		}
		b.fast.set(true, nil)
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if got := b.device(t, blocks(2)[0]); got != "weft-b" {
			t.Errorf("100 ms after its end by %q", got)
		}
	})
}

// After a start whoever answers first carries, and the best as soon as it answers: nothing has failed yet.
func TestAStartIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.fast.set(true, nil)
		b.Update(b.in)
		defer b.run(t)()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got := b.device(t, blocks(2)[0]); got != "weft-b" {
			t.Fatalf("before the best answers by %q", got)
		}
		b.fast.set(false, nil)
		time.Sleep(time.Second)
		synctest.Wait()
		if got := b.device(t, blocks(2)[0]); got != "weft-a" {
			t.Errorf("a second after it answers by %q", got)
		}
	})
}

func TestABrokenTransportDoesNotHoldUpTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.fast.set(true, errors.New("broken"))
		b.Update(b.in)
		defer b.run(t)()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := b.device(t, blocks(2)[0]); got != "weft-b" {
			t.Errorf("by %q", got)
		}
		if s := b.Status(); !s.Ready || !strings.Contains(s.Reason, "broken") {
			t.Errorf("status: %+v", s)
		}
		b.fast.set(false, nil)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if s := b.Status(); s.Reason != "" {
			t.Errorf("after repair: %s", s.Reason)
		}
	})
}

func TestARemovedPeerIsCutOffAtOnceAndALeftTunnelLingers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.Update(b.in)
		defer b.run(t)()
		in := b.in
		in.Peers = slices.Clone(in.Peers)
		in.Peers[0].Info.Transports = []string{"slow"}
		b.Update(in)
		synctest.Wait()
		if got := b.device(t, blocks(2)[0]); got != "weft-b" {
			t.Errorf("by %q", got)
		}
		if len(b.fast.peers()) != 1 {
			t.Error("the tunnel that is left is closed already")
		}
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if len(b.fast.peers()) != 0 {
			t.Error("the tunnel that is left is open still")
		}
		in.Peers = nil
		b.Update(in)
		synctest.Wait()
		if got := b.device(t, blocks(2)[0]); got != "" || len(b.slow.peers()) != 0 {
			t.Errorf("removed peer: by %q, tunnels %v", got, b.slow.peers())
		}
	})
}

func TestOutsideChangesAndTimeRepair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.Update(b.in)
		defer b.run(t)()
		b.h.DropLink("weft-a")
		b.h.AddLink(host.Link{Name: "weft-a", Kind: "tun", MTU: 1500})
		time.Sleep(time.Second)
		synctest.Wait()
		if got := b.device(t, blocks(2)[0]); got != "weft-a" {
			t.Errorf("after an event: %q", got)
		}
		b.h.Log()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if log := b.h.Log(); len(log) != 0 {
			t.Errorf("changes in five quiet minutes: %v", log)
		}
	})
}

func TestStopLeavesEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.Update(b.in)
		stop := b.run(t)
		b.h.Log()
		stop()
		if log := b.h.Log(); len(log) != 0 {
			t.Errorf("stopping changed: %v", log)
		}
		if got := b.device(t, blocks(2)[0]); got != "weft-a" {
			t.Errorf("by %q", got)
		}
		if err := b.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := b.device(t, blocks(2)[0]); got != "" || len(b.h.Ruleset("").Chains) == 0 {
			t.Errorf("after down by %q", got)
		}
	})
}

func TestPools(t *testing.T) {
	pool := []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12")}
	for name, c := range map[string]struct {
		change  func(h *hosttest.Host)
		refused string
		warned  string
	}{
		"free": {func(*hosttest.Host) {}, "", ""},
		"an address inside": {func(h *hosttest.Host) {
			h.AddAddress(host.Address{Link: "eth0", Prefix: netip.MustParsePrefix("10.40.0.5/24")})
		}, "10.40.0.5 of eth0", ""},
		"a route inside": {func(h *hosttest.Host) {
			h.AddRoute(host.Route{Dst: netip.MustParsePrefix("10.33.0.0/16"), Link: "eth0"})
		}, "10.33.0.0/16 dev eth0", ""},
		"the same route": {func(h *hosttest.Host) {
			h.AddRoute(host.Route{Dst: pool[0], Via: netip.MustParseAddr("192.0.2.1"), Link: "eth0"})
		}, "10.32.0.0/12 via 192.0.2.1", ""},
		"a wider route": {func(h *hosttest.Host) {
			h.AddRoute(host.Route{Dst: netip.MustParsePrefix("10.0.0.0/8"), Link: "eth0"})
		}, "", "10.0.0.0/8 dev eth0"},
		"the default route": {func(h *hosttest.Host) {
			h.AddRoute(host.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Link: "eth0"})
		}, "", ""},
		"our own leftovers": {func(h *hosttest.Host) {
			h.AddRoute(host.Route{Dst: pool[0], Kind: host.Unreachable, Ours: true})
			h.AddRoute(host.Route{Dst: netip.MustParsePrefix("10.32.4.0/22"), Link: "weft-sl", Ours: true})
			h.AddAddress(host.Address{Link: "lo", Prefix: netip.MustParsePrefix("10.32.0.1/32")})
			h.AddRoute(host.Route{Dst: netip.MustParsePrefix("10.32.0.1/32"), Link: "lo"}) // as the kernel does with IPv6
		}, "", ""},
		"another's address on loopback": {func(h *hosttest.Host) {
			h.AddAddress(host.Address{Link: "lo", Prefix: netip.MustParsePrefix("10.32.0.1/32")})
		}, "10.32.0.1 of lo", ""},
	} {
		h := hosttest.New(nil)
		c.change(h)
		warnings, err := router.CheckPools(t.Context(), h, pool)
		if (err != nil) != (c.refused != "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%s: %v", name, err)
		}
		if all := strings.Join(warnings, ""); (all != "") != (c.warned != "") || !strings.Contains(all, c.warned) {
			t.Errorf("%s: warned %q", name, all)
		}
	}
}
