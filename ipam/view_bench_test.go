package ipam

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"weft/ipam/ring"
	"weft/mesh/peer"
)

// BenchmarkGrant lends a block: one signature, one transaction. The block is taken back without a word between.
func BenchmarkGrant(b *testing.B) {
	for _, store := range []string{"memory", "bbolt"} {
		b.Run(store, func(b *testing.B) {
			c := newCluster(b, 2, "10.0.0.0/12", 28)
			cfg := c.nodes[0].config()
			cfg.Log = slog.New(slog.DiscardHandler)
			if store == "bbolt" {
				cfg.Store = openBolt(b, filepath.Join(b.TempDir(), "ipam.db"))
			}
			a, stop := runAlone(b, cfg)
			defer stop()
			borrower := c.nodes[1].key
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				var request requestID
				binary.BigEndian.PutUint64(request[:], uint64(i+1))
				var answer grantAnswer
				var err error
				if doErr := a.do(b.Context(), func() { answer, err = a.lend(borrower.ID(), request) }); doErr != nil || err != nil {
					b.Fatal(doErr, err)
				}
				if answer.ring != nil && answer.reason == lackNothing && a.current().Len() < 1000 {
					continue
				}
				b.StopTimer() // the pool is cut up: begin again
				if err := a.do(b.Context(), func() {
					a.mu.Lock()
					a.setRing(ring.New(c.u))
					a.mu.Unlock()
				}); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkStart reads a store with 100,000 claims and makes the start durable.
func BenchmarkStart(b *testing.B) {
	const claims = 100_000
	c := newCluster(b, 1, "10.0.0.0/12", 26)
	path := filepath.Join(b.TempDir(), "ipam.db")
	store := openBolt(b, path)
	var ops []Op
	addr := netip.MustParseAddr("10.0.0.1")
	for i := range claims {
		addr = addr.Next()
		ops = append(ops, putClaim(claim{Claim: Claim{
			V4: addr, Container: fmt.Sprintf("%064d", i), IfName: "eth0",
			NetNS: "/run/netns/cni-0123456789", Pod: "default/pod", Created: time.Unix(0, 0),
		}}))
	}
	if err := store.Commit(ops); err != nil {
		b.Fatal(err)
	}
	if err := store.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		cfg := c.nodes[0].config()
		cfg.Log = slog.New(slog.DiscardHandler)
		cfg.Store = openBolt(b, path)
		a, stop := runAlone(b, cfg)
		if err := a.do(b.Context(), func() {}); err != nil {
			b.Fatal(err)
		}
		if got := len(a.Claims()); got != claims {
			b.Fatalf("%d claims", got)
		}
		stop()
	}
}

// runAlone starts an allocator outside of a bubble.
func runAlone(b *testing.B, cfg Config) (a *Allocator, stop func()) {
	b.Helper()
	a, err := New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.Run(ctx); err != nil {
			b.Error(err)
		}
	})
	return a, func() {
		cancel()
		wg.Wait()
	}
}

// BenchmarkRemoval is a whole removal in a cluster in memory, from the roster's word to the takeover.
func BenchmarkRemoval(b *testing.B) {
	c := newCluster(b, 3, "10.0.0.0/12", 26)
	n1 := c.nodes[0]
	cfg := n1.config()
	cfg.Log = slog.New(slog.DiscardHandler)
	c.nodes[1].mute.Store(true) // a member that is removed, and nobody else to ask
	c.nodes[2].joined.Store(false)
	for b.Loop() {
		cfg.Store = newMemory()
		n1.roster.removals = map[peer.ID]Removal{}
		a, stop := runAlone(b, cfg)
		if err := a.do(b.Context(), func() { _, err := a.lend(c.nodes[1].key.ID(), requestID{1}); _ = err }); err != nil {
			b.Fatal(err)
		}
		changed := a.Watch()
		n1.roster.mu.Lock()
		n1.roster.removals[c.nodes[1].key.ID()] = Removal{Node: c.nodes[1].key.ID(), Silent: true}
		n1.roster.mu.Unlock()
		a.RosterChanged()
		for len(a.Blocks()[c.nodes[1].key.ID()]) > 0 {
			<-changed
		}
		stop()
	}
}
