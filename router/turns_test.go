package router

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestTurnsAreSharedByWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns()
		var runs atomic.Int32
		done := errors.New("done")
		work := func(context.Context) error {
			runs.Add(1)
			time.Sleep(time.Second)
			return done
		}
		var wg sync.WaitGroup
		begin := time.Now()
		for range 50 {
			wg.Go(func() {
				if err := turns.share(t.Context(), work); !errors.Is(err, done) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		// All but the first came while it was at work, or together with it.
		if n := runs.Load(); n > 2 || time.Since(begin) > 2*time.Second {
			t.Errorf("done %d times in %s", n, time.Since(begin))
		}
	})
}

// What began before somebody came may not have seen what he wants.
func TestATurnBeginsAfterTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns()
		var wanted, seen atomic.Int32
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 100 * time.Millisecond)
				mine := wanted.Add(1)
				err := turns.share(t.Context(), func(context.Context) error {
					now := wanted.Load()
					time.Sleep(250 * time.Millisecond)
					seen.Store(now)
					return nil
				})
				if err != nil || seen.Load() < mine {
					t.Errorf("wanted %d, done was %d: %v", mine, seen.Load(), err)
				}
			})
		}
		wg.Wait()
	})
}

// Somebody who goes away ends nothing for the others.
func TestATurnOutlivesWhoBeganIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns()
		ctx, cancel := context.WithCancel(t.Context())
		failure := errors.New("the kernel says no")
		work := func(ctx context.Context) error {
			time.Sleep(time.Second)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return failure
		}
		var wg sync.WaitGroup
		for i := range 3 {
			own := t.Context()
			if i == 0 {
				own = ctx
			}
			wg.Go(func() {
				if err := turns.share(own, work); !errors.Is(err, failure) {
					t.Errorf("%d: %v", i, err)
				}
			})
			time.Sleep(time.Millisecond) // the first one begins it
		}
		cancel()
		wg.Wait()
		late, stop := context.WithCancel(t.Context())
		wg.Go(func() { _ = turns.share(t.Context(), work) })
		time.Sleep(time.Millisecond)
		wg.Go(func() { _ = turns.share(t.Context(), work) })
		time.Sleep(time.Millisecond)
		stop()
		if err := turns.share(late, work); !errors.Is(err, context.Canceled) {
			t.Errorf("waits although its caller is gone: %v", err)
		}
		wg.Wait()
	})
}
