package sleeve

import (
	"context"
	"slices"

	"weft/mesh/peer"
)

// controlQueue is how many control datagrams wait for the daemon.
const controlQueue = 256

// control is a datagram from another daemon.
type control struct {
	from peer.ID
	b    []byte
}

// controls hands control datagrams to the callback without ever stopping a receive worker.
type controls struct {
	e       *Engine
	deliver func(peer.ID, []byte)
	queue   chan control
}

// offer copies b and queues it; the oldest goes when the queue is full.
func (c *controls) offer(from peer.ID, b []byte) {
	if c.deliver == nil {
		c.e.drops.add(dropControl, 1)
		return
	}
	d := control{from, slices.Clone(b)}
	for {
		select {
		case c.queue <- d:
			return
		default:
		}
		select {
		case <-c.queue:
			c.e.drops.add(dropControl, 1)
		default:
		}
	}
}

func (c *controls) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-c.queue:
			c.deliver(d.from, d.b)
		}
	}
}
