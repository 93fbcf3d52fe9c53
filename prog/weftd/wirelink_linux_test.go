package weftd

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"weft/mesh/peer"
	"weft/prog/wire"
	"weft/router"
)

// linkLab is a wirelink over real wires, which get neither port nor device.
func linkLab(t *testing.T) *wirelink {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the wire drops its rights")
	}
	dir := must(os.MkdirTemp("", "link"))(t) //nolint:usetesting // t.TempDir holds the test's name: too long for a socket
	t.Cleanup(func() { os.RemoveAll(dir) })
	return linkIn(t, dir)
}

func linkIn(t *testing.T, dir string) *wirelink {
	t.Helper()
	l := newWirelink(slog.New(slog.DiscardHandler), wire.Options{
		Exe: testBinary(t), Socket: filepath.Join(dir, "wire.sock"), LogFile: filepath.Join(dir, "wire.log"), Version: "test",
	})
	l.identity = func(bool) (wire.Identity, error) {
		return wire.Identity{ID: peer.ID{1}, NoisePrivate: [32]byte{1}, Cluster: [32]byte{9}}, nil
	}
	l.equip = func(context.Context, *wire.Client) error { return nil }
	return l
}

// running runs l until the returned function, which returns what run did.
func running(t *testing.T, l *wirelink) (end func() error) {
	t.Helper()
	// Not the test's own context, which ends before clean-up: run would let go of the wire before it is stopped.
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var err error
	var wg sync.WaitGroup
	wg.Go(func() { err = l.run(ctx) })
	end = sync.OnceValue(func() error { cancel(); wg.Wait(); return err })
	t.Cleanup(func() {
		_ = l.stop(context.WithoutCancel(ctx))
		_ = end()
	})
	return end
}

func attached(t *testing.T, l *wirelink, old *wire.Client) *wire.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return must(l.next(ctx, old))(t)
}

func knows(t *testing.T, l *wirelink) (ids []peer.ID) {
	t.Helper()
	for _, p := range must(l.stats(t.Context()))(t).Peers {
		ids = append(ids, p.ID)
	}
	slices.SortFunc(ids, peer.ID.Compare)
	return ids
}

// TestWireDies: another one is started and told everything, also what was wanted while there was none.
func TestWireDies(t *testing.T) {
	l := linkLab(t)
	if err := l.SetPeers(t.Context(), []wire.Peer{{ID: peer.ID{2}, NoisePublic: [32]byte{2}}}); err != nil {
		t.Fatal(err)
	}
	running(t, l)
	first := attached(t, l, nil)
	if got := knows(t, l); !slices.Equal(got, []peer.ID{{2}}) {
		t.Errorf("the first wire knows %v", got)
	}
	if err := syscall.Kill(first.Hello().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := attached(t, l, first)
	if second.Hello().PID == first.Hello().PID || !second.Started() || l.trouble() != nil || l.attached() != 2 {
		t.Errorf("second wire: %+v, %v", second.Hello(), l.trouble())
	}
	if got := knows(t, l); !slices.Equal(got, []peer.ID{{2}}) {
		t.Errorf("the second wire knows %v", got)
	}
}

// TestWireStopped: after stop no other is started.
func TestWireStopped(t *testing.T) {
	l := linkLab(t)
	end := running(t, l)
	c := attached(t, l, nil)
	if err := l.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Err(); !errors.Is(err, wire.ErrStopped) {
		t.Errorf("the client ended with %v", err)
	}
	if err := syscall.Kill(c.Hello().PID, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("it runs still: %v", err)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	if l.attached() != 1 {
		t.Errorf("%d wires", l.attached())
	}
	if err := l.Send(peer.ID{2}, nil); !errors.Is(err, wire.ErrLost) {
		t.Errorf("send without a wire: %v", err)
	}
	if err := l.stop(t.Context()); err != nil {
		t.Errorf("again: %v", err)
	}
}

// TestWireTakenOver: a daemon that ends leaves its wire, and the next one attaches to it. Two that live do not tear it to and
// fro for long: one gives way.
func TestWireTakenOver(t *testing.T) {
	l := linkLab(t)
	end := running(t, l)
	pid := attached(t, l, nil).Hello().PID
	if err := end(); err != nil {
		t.Fatal(err)
	}
	second, third := linkIn(t, filepath.Dir(l.options.Socket)), linkIn(t, filepath.Dir(l.options.Socket))
	gaveWay := make(chan error, 2)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { gaveWay <- second.run(ctx) })
	if c := attached(t, second, nil); c.Hello().PID != pid || c.Started() {
		t.Errorf("the second attached to %+v", c.Hello())
	}
	wg.Go(func() { gaveWay <- third.run(ctx) })
	select {
	case err := <-gaveWay:
		if !errors.Is(err, wire.ErrDisplaced) {
			t.Errorf("one ended with %v", err)
		}
	case <-time.After(patience):
		t.Error("neither gives way")
	}
	// Who still runs would start another wire for one that was stopped.
	cancel()
	wg.Wait()
	o := l.options
	o.Exe = ""
	c := must(wire.Ensure(t.Context(), o))(t)
	if err := errors.Join(c.Stop(t.Context()), c.Close()); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the wire runs still: %v", err)
	}
}

// TestLiesStayWithTheLiar: whatever members claim, the lists that the wire takes whole are taken.
func TestLiesStayWithTheLiar(t *testing.T) {
	l := linkLab(t)
	running(t, l)
	attached(t, l, nil)
	honest := []wire.Peer{{ID: peer.ID{2}, NoisePublic: [32]byte{2}}, {ID: peer.ID{3}, NoisePublic: [32]byte{3}}}
	if err := l.SetPeers(t.Context(), honest); err != nil {
		t.Fatal(err)
	}
	var many []netip.AddrPort
	for i := range 500 {
		many = append(many, netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), uint16(i+1)))
	}
	lies := append([]wire.Peer{
		{ID: peer.ID{4}, NoisePublic: [32]byte{2}}, // claims the key of 2, and comes first
		{ID: peer.ID{5}}, // has told nothing
		{ID: peer.ID{6}, NoisePublic: [32]byte{6}, Endpoints: append(many, netip.AddrPort{}, netip.MustParseAddrPort("0.0.0.0:0"))},
	}, honest...)
	if err := l.SetPeers(t.Context(), lies); err != nil {
		t.Fatal(err)
	}
	if got, want := knows(t, l), []peer.ID{{2}, {3}, {6}}; !slices.Equal(got, want) {
		t.Errorf("the wire knows %v, want %v", got, want)
	}
	// The owner leaves: then the key is free.
	if err := l.SetPeers(t.Context(), lies[:1]); err != nil {
		t.Fatal(err)
	}
	if got, want := knows(t, l), []peer.ID{{4}}; !slices.Equal(got, want) {
		t.Errorf("the wire knows %v, want %v", got, want)
	}

	block, other := netip.MustParsePrefix("10.32.0.0/24"), netip.MustParsePrefix("10.32.1.0/24")
	for _, tunnels := range [][]router.Tunnel{
		{{Peer: peer.ID{2}, Blocks: []netip.Prefix{block, other}, MTU: 1420}},
		{{Peer: peer.ID{2}, Blocks: []netip.Prefix{block, other}, MTU: 1420}, {Peer: peer.ID{3}, Blocks: []netip.Prefix{block, block}, MTU: 1420}},
	} {
		if err := l.SetTunnels(t.Context(), tunnels); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.blocks; got[block] != (peer.ID{3}) || got[other] != (peer.ID{2}) {
		t.Errorf("a block that moved is of %v, the other of %v", got[block], got[other])
	}
}
