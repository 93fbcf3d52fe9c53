package ipam

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
)

// BenchmarkClaim gives and takes back an address, each durable on this machine's disk.
func BenchmarkClaim(b *testing.B) {
	c := newCluster(b, 1, "10.32.0.0/12", 26)
	n := c.nodes[0]
	for _, store := range []string{"memory", "bbolt"} {
		b.Run(store, func(b *testing.B) {
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
			for i := 0; b.Loop(); i++ {
				name := fmt.Sprint(i % 100)
				if _, err := a.Claim(ctx, Request{Container: name, IfName: "eth0"}); err != nil {
					b.Fatal(err)
				}
				if _, err := a.Release(ctx, name, "eth0"); err != nil {
					b.Fatal(err)
				}
			}
			cancel()
			wg.Wait()
		})
	}
}
