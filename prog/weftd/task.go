package weftd

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"

	"golang.org/x/sync/errgroup"
)

// task is one thing that the daemon does until it is told to stop. run returns only when all that it started has
// ended; an error ends the daemon, which is right for what cannot be mended from inside: whoever started weft starts it
// again, and the wire carries on meanwhile.
type task struct {
	name string
	run  func(context.Context) error
}

// supervise runs tasks side by side. It returns when all have ended: after ctx, or after the first that failed or
// panicked.
func supervise(ctx context.Context, log *slog.Logger, tasks ...task) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, t := range tasks {
		g.Go(func() (err error) {
			defer func() {
				if p := recover(); p != nil {
					log.Error("task panicked", "task", t.name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
					err = fmt.Errorf("%s: panic: %v", t.name, p)
				}
			}()
			log.Debug("task begins", "task", t.name)
			defer log.Debug("task ended", "task", t.name)
			if err := t.run(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			return nil
		})
	}
	return g.Wait()
}
