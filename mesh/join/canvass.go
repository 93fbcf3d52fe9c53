package join

import (
	"context"
	"iter"
	"sync"
	"time"

	"weft/mesh/peer"
)

// answer is what one member said.
type answer[T any] struct {
	from  peer.ID
	value T
	err   error
}

// canvass asks members at the same time, or each one only after the one before has failed or been silent for stagger. It
// yields the answers as they come. When the caller stops listening, questions under way are cancelled and waited for.
func canvass[T any](ctx context.Context, members []peer.ID, stagger time.Duration,
	ask func(context.Context, peer.ID) (T, error),
) iter.Seq[answer[T]] {
	return func(yield func(answer[T]) bool) {
		var asked sync.WaitGroup
		defer asked.Wait()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		answers := make(chan answer[T], len(members))
		next := time.NewTimer(0)
		defer next.Stop()
		for left := len(members); left > 0; {
			select {
			case <-next.C:
				for len(members) > 0 {
					id := members[0]
					members = members[1:]
					asked.Go(func() {
						v, err := ask(ctx, id)
						answers <- answer[T]{id, v, err}
					})
					if stagger > 0 {
						next.Reset(stagger)
						break
					}
				}
			case a := <-answers:
				left--
				if !yield(a) {
					return
				}
				if a.err != nil && stagger > 0 {
					next.Reset(0)
				}
			}
		}
	}
}
