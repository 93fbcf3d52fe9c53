package router

import (
	"context"
	"sync"
	"time"
)

// turnTime bounds what is done for several callers at once, of whom none may end it for the others.
const turnTime = 10 * time.Second

// turns lets callers that want the same thing done share the doing of it: whoever comes while it is being done waits for
// the next time, together with all others who came meanwhile.
type turns struct {
	running chan struct{} // capacity 1: full while it is done

	mu   sync.Mutex // guards next
	next *turn
}

func newTurns() *turns { return &turns{running: make(chan struct{}, 1)} }

type turn struct {
	done chan struct{}
	err  error
}

// share returns when f has run from its beginning to its end since the call, and what it returned. When ctx ends before,
// f may run nevertheless.
func (t *turns) share(ctx context.Context, f func(context.Context) error) error {
	t.mu.Lock()
	mine := t.next
	first := mine == nil
	if first {
		mine = &turn{done: make(chan struct{})}
		t.next = mine
	}
	t.mu.Unlock()
	if first {
		t.run(ctx, mine, f)
		return mine.err
	}
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t *turns) run(ctx context.Context, mine *turn, f func(context.Context) error) {
	t.running <- struct{}{}
	defer func() { <-t.running }()
	defer close(mine.done)
	t.mu.Lock()
	t.next = nil // who comes from here on may want what f has not seen
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), turnTime)
	defer cancel()
	mine.err = f(ctx)
}
