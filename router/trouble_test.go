package router_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/peer"
	"weft/router"
	"weft/router/host"
	"weft/router/host/hosttest"
)

// What is wrong in one place must not stop what protects, or what repairs, in another.

func TestEventsWithoutEndDoNotPutOffRepair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.Update(b.in)
		defer b.run(t)()
		ctx, cancel := context.WithCancel(t.Context())
		var busy sync.WaitGroup
		defer busy.Wait()
		defer cancel()
		busy.Go(func() { // somebody adds and deletes addresses all the time
			for ctx.Err() == nil {
				b.h.Tell(host.Event{What: "address"})
				time.Sleep(10 * time.Millisecond)
			}
		})
		b.h.DropLink("weft-a")
		b.h.AddLink(host.Link{Name: "weft-a", Kind: "tun", MTU: 1500})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := b.device(t, blocks(2)[0]); got != "weft-a" {
			t.Errorf("two seconds after the route was lost it leads by %q", got)
		}
	})
}

// blind is a machine that tells nothing of its changes.
type blind struct {
	*hosttest.Host
	watch   func() (<-chan host.Event, error)
	watches atomic.Int64
}

func (b *blind) Watch(context.Context) (<-chan host.Event, error) {
	b.watches.Add(1)
	return b.watch()
}

func TestAMachineThatTellsNothingIsAskedNowAndThen(t *testing.T) {
	for name, watch := range map[string]func() (<-chan host.Event, error){
		"it cannot be watched": func() (<-chan host.Event, error) { return nil, errors.New("no such family") },
		"watching ends at once": func() (<-chan host.Event, error) {
			c := make(chan host.Event)
			close(c)
			return c, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &blind{Host: hosttest.New(nil), watch: watch}
				r, err := router.New(router.Config{Host: h})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
				defer cancel()
				if err := r.Run(ctx); err != nil {
					t.Fatal(err)
				}
				if n := h.watches.Load(); n > 30 {
					t.Errorf("asked %d times in 10 minutes, each with a line in the log", n)
				}
			})
		})
	}
}

func TestABrokenTransportHoldsNoAddressBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.fast.set(true, errors.New("its port is taken"))
		b.h.AddLink(host.Link{Name: host.VethName("former/eth0"), Kind: "veth", Up: true})
		b.Update(b.in)
		defer b.run(t)()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if b.Lingers(addr("10.32.4.%d", 9)) {
			t.Error("no address that was released is given again for as long as a transport is broken")
		}
		s, err := b.h.Snapshot(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, there := s.Link(host.VethName("former/eth0")); there {
			t.Error("the link that a former run left is there still")
		}
	})
}

func TestARemovedPeerIsCutOffAlsoWhereTheGuardFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		var broken atomic.Bool
		b.h.Fail = func(change string) error {
			if broken.Load() && strings.HasPrefix(change, "filter") {
				return errors.New("the kernel lacks a module")
			}
			return nil
		}
		b.in.Peers = append(b.in.Peers, router.Peer{
			Blocks: blocks(3), Info: peer.Info{ID: id(3), Known: true, Transports: []string{"fast"}},
		})
		b.Update(b.in)
		defer b.run(t)()
		if got := b.fast.peers(); len(got) != 2 {
			t.Fatalf("tunnels %v", got)
		}
		broken.Store(true)
		in := b.in
		in.Peers = in.Peers[:1]
		in.HostAccessAll = true // the guard is to change
		b.Update(in)
		synctest.Wait()
		if s := b.Status(); !strings.Contains(s.Reason, "lacks a module") {
			t.Fatalf("status: %q", s.Reason)
		}
		if got := b.fast.peers(); !slices.Equal(got, []peer.ID{id(2)}) {
			t.Errorf("tunnels %v; the removed peer's is to go, and no other", got)
		}
	})
}

// hiccup is a transport that does not always tell of its links.
type hiccup struct {
	*tunnels
	silent atomic.Bool
}

func (h *hiccup) Links(ctx context.Context) ([]router.Link, error) {
	if h.silent.Load() {
		return nil, errors.New("the kernel was interrupted")
	}
	return h.tunnels.Links(ctx)
}

func TestOneUnansweredLookIsNoReasonToGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hosttest.New(nil)
		h.AddLink(host.Link{Name: "eth0", Up: true, MTU: 1500})
		fast := &hiccup{tunnels: &tunnels{h: h, device: "weft-a"}}
		driver := func(name, device string, tr router.Transport) router.Driver {
			return router.Driver{
				Name: name, Device: device, Sealed: true, Checks: true,
				Open: func(context.Context) (router.Transport, error) {
					h.AddLink(host.Link{Name: device, Kind: "tun", MTU: 1500})
					return tr, nil
				},
			}
		}
		r, err := router.New(router.Config{Host: h, Drivers: []router.Driver{
			driver("fast", "weft-a", fast), driver("slow", "weft-b", &tunnels{h: h, device: "weft-b"}),
		}})
		if err != nil {
			t.Fatal(err)
		}
		b := &bench{Router: r, h: h}
		r.Update(router.Input{
			Self: id(1), Pools: pools, Blocks: blocks(1), Hosts: []netip.Addr{addr("10.32.4.%d", 1)},
			Peers: []router.Peer{{Blocks: blocks(2), Info: peer.Info{ID: id(2), Known: true, Transports: []string{"fast", "slow"}}}},
		})
		defer b.run(t)()
		time.Sleep(2 * time.Second)
		by := func() string { synctest.Wait(); return b.device(t, blocks(2)[0]) }
		if got := by(); got != "weft-a" {
			t.Fatalf("by %q", got)
		}
		fast.silent.Store(true)
		time.Sleep(600 * time.Millisecond)
		fast.silent.Store(false)
		if got := by(); got != "weft-a" {
			t.Errorf("after one look without an answer by %q", got)
		}
		fast.silent.Store(true)
		time.Sleep(4 * time.Second)
		if got := by(); got != "weft-b" {
			t.Errorf("after four seconds without an answer by %q", got)
		}
	})
}

func TestRemoveGoesOnWithoutTheFormerSysctls(t *testing.T) {
	h := hosttest.New(nil)
	h.AddLink(host.Link{Name: "weft-sl", Kind: "tun", Up: true})
	h.AddRoute(host.Route{Dst: pools[0], Kind: host.Unreachable, Metric: host.UnreachableMetric, Ours: true})
	undo := filepath.Join(t.TempDir(), "undo.json")
	if err := os.WriteFile(undo, []byte(`{"net/ipv4/ip_forw`), 0o600); err != nil {
		t.Fatal(err)
	}
	err := router.Remove(t.Context(), h, undo)
	if err == nil || !strings.Contains(err.Error(), undo) {
		t.Errorf("what could not be given back is not told: %v", err)
	}
	s, serr := h.Snapshot(t.Context(), nil)
	if serr != nil {
		t.Fatal(serr)
	}
	if _, there := s.Link("weft-sl"); there || len(s.Routes) != 0 {
		t.Errorf("left: %v %v", s.Links, s.Routes)
	}
	if _, err := os.Stat(undo); err != nil {
		t.Errorf("the file that somebody may mend is gone: %v", err)
	}
}

func TestAnEmptyUndoFileIsNoPanic(t *testing.T) {
	undo := filepath.Join(t.TempDir(), "undo.json")
	if err := os.WriteFile(undo, []byte("null\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		r, err := router.New(router.Config{Host: hosttest.New(map[string]string{"net/ipv4/ip_forward": "0"}), Undo: undo})
		if err != nil {
			t.Fatal(err)
		}
		r.Update(router.Input{Self: id(1), Pools: pools, Blocks: blocks(1)})
		defer (&bench{Router: r}).run(t)()
		if s := r.Status(); !s.Ready {
			t.Errorf("status: %+v", s)
		}
	})
}

// Who stops weft on a machine whose guard fails must not leave behind what a former run, that had one, has opened.
func TestDownEndsWhatAFormerRunLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.h.Fail = func(change string) error {
			if strings.HasPrefix(change, "filter") {
				return errors.New("no nftables")
			}
			return nil
		}
		b.h.AddLink(host.Link{Name: "weft-a", Kind: "wireguard", Up: true})
		b.h.AddRoute(host.Route{Dst: blocks(2)[0], Link: "weft-a", Ours: true})
		b.Update(b.in)
		b.run(t)()
		if err := b.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := b.device(t, blocks(2)[0]); got != "" {
			t.Errorf("after down packets go to a peer by %s", got)
		}
	})
}
