package wire

import (
	"net/netip"
	"sync"
	"time"
)

// What one address may cost by opening TCP connections. Members open a few a second; many of them may stand behind one NAT.
const (
	callRate   = 100  // connections a second from one address (/32, /64)
	callBurst  = 200  // at once
	maxCallers = 4096 // addresses that are remembered
)

// callers is a token bucket for each address that opens TCP connections: what is beyond is closed without a word, before
// weftd hears of it. When the table is full it starts anew. The zero value is ready.
type callers struct {
	mu  sync.Mutex // guards all
	all map[netip.Prefix]caller
}

type caller struct {
	tokens float64
	at     time.Time
}

func (c *callers) allow(a netip.Addr, now time.Time) bool {
	p := household(a)
	if !p.IsValid() {
		return true // nobody's address
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	one, ok := c.all[p]
	if !ok {
		if c.all == nil || len(c.all) >= maxCallers {
			c.all = map[netip.Prefix]caller{}
		}
		one = caller{callBurst, now}
	}
	one.tokens = min(callBurst, one.tokens+now.Sub(one.at).Seconds()*callRate)
	one.at = now
	may := one.tokens >= 1
	if may {
		one.tokens--
	}
	c.all[p] = one
	return may
}

// household is what one caller can have of the Internet: an IPv4 address, an IPv6 /64. Not valid for nobody's address.
func household(a netip.Addr) netip.Prefix {
	bits := 32
	if a = a.Unmap(); a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
