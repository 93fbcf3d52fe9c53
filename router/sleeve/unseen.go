package sleeve

import "sync"

// unseen is what the kernel has dropped at a socket, as far as it was counted: what the sieve holds back, and what found the
// receive buffer full. The kernel does not tell the two apart. While a filter stands the buffer is hardly ever full, so that
// all of that time is taken for the filter's. A train of datagrams that the kernel has put together counts as one.
type unseen struct {
	mu     sync.Mutex // guards what follows
	last   uint32     // the kernel's counter, which wraps
	sieved bool       // a filter stands
}

// count takes the kernel's counter in: how many were dropped since the last time, and why.
func (u *unseen) count(now uint32) (reason, int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := now - u.last
	u.last = now
	if u.sieved {
		return dropFlood, int(n)
	}
	return dropBuffer, int(n)
}

func (u *unseen) sieve(on bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sieved = on
}

// countUnseen adds to the engine's counters what the kernel has dropped since the last time.
func (e *Engine) countUnseen() {
	socks := e.sockets.Load()
	if socks == nil {
		return
	}
	for _, sock := range []*socket{socks.v4, socks.v6} {
		if sock == nil {
			continue
		}
		if now, err := sock.dropped(); err == nil { // a kernel that does not tell has none to tell of
			e.drops.add(sock.unseen.count(now))
		}
	}
}
