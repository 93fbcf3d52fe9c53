package weftd

import (
	"context"
)

// lingers tells the ring which released addresses may still be on the interface of a pod that was detached.
type lingers struct{ gone chan struct{} } // capacity 1

func newLingers() lingers { return lingers{make(chan struct{}, 1)} }

// buried is called by the router when links have gone. It returns at once.
func (l lingers) buried() {
	select {
	case l.gone <- struct{}{}:
	default:
	}
}

// runLingers wakes claims that wait for an address that lingered.
func (n *node) runLingers(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.lingers.gone:
			if err := n.ring.Settle(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}
