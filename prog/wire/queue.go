package wire

import "sync"

// Limits of a queue of control datagrams: some seconds of gossip in a large cluster.
const (
	maxQueued      = 4096
	maxQueuedBytes = 4 << 20
)

// queue holds datagrams until somebody wants them. A full one drops its oldest.
type queue struct {
	ready chan struct{} // holds a token while the queue may be non-empty

	mu      sync.Mutex
	items   []Datagram // a ring of maxQueued, grown as needed
	head    int
	n       int
	bytes   int
	dropped uint64
}

func newQueue() *queue { return &queue{ready: make(chan struct{}, 1)} }

// push appends d, which must not be changed afterwards.
func (q *queue) push(d Datagram) {
	q.mu.Lock()
	for q.n > 0 && (q.n == maxQueued || q.bytes+len(d.Data) > maxQueuedBytes) {
		q.take()
		q.dropped++
	}
	if q.n == len(q.items) {
		q.grow()
	}
	q.items[(q.head+q.n)%len(q.items)] = d
	q.n++
	q.bytes += len(d.Data)
	q.mu.Unlock()
	q.signal()
}

// pop removes the oldest, and leaves a token for the next taker when there is more.
func (q *queue) pop() (Datagram, bool) {
	q.mu.Lock()
	if q.n == 0 {
		q.mu.Unlock()
		return Datagram{}, false
	}
	d := q.take()
	more := q.n > 0
	q.mu.Unlock()
	if more {
		q.signal()
	}
	return d, true
}

// lost is how many were dropped so far.
func (q *queue) lost() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.dropped
}

func (q *queue) signal() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

func (q *queue) take() Datagram {
	d := q.items[q.head]
	q.items[q.head] = Datagram{}
	q.head = (q.head + 1) % len(q.items)
	q.n--
	q.bytes -= len(d.Data)
	return d
}

func (q *queue) grow() {
	bigger := make([]Datagram, min(max(16, 2*len(q.items)), maxQueued))
	for i := range q.n {
		bigger[i] = q.items[(q.head+i)%len(q.items)]
	}
	q.items, q.head = bigger, 0
}
