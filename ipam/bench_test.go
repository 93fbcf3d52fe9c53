package ipam

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
)

// BenchmarkClaim gives and takes back an address, each durable on this machine's disk, for one caller and for many at once,
// who share transactions.
func BenchmarkClaim(b *testing.B) {
	c := newCluster(b, 1, "10.32.0.0/12", 26)
	n := c.nodes[0]
	for _, bench := range []struct {
		store   string
		callers int
	}{{"memory", 1}, {"memory", 16}, {"bbolt", 1}, {"bbolt", 16}} {
		store := bench.store
		b.Run(fmt.Sprintf("%s/callers=%d", store, bench.callers), func(b *testing.B) {
			cfg := n.config()
			cfg.Log = slog.New(slog.DiscardHandler)
			cfg.Store = newMemory()
			if store == "bbolt" {
				cfg.Store = openBolt(b, filepath.Join(b.TempDir(), "ipam.db"))
			}
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
			var callers sync.WaitGroup
			todo := make(chan string)
			for range bench.callers {
				callers.Go(func() {
					for name := range todo {
						if _, err := a.Claim(ctx, Request{Container: name, IfName: "eth0"}); err != nil {
							b.Error(err)
						}
						if _, err := a.Release(ctx, name, "eth0"); err != nil {
							b.Error(err)
						}
					}
				})
			}
			for i := 0; b.Loop(); i++ {
				todo <- fmt.Sprint(i % 100)
			}
			close(todo)
			callers.Wait()
			cancel()
			wg.Wait()
		})
	}
}
