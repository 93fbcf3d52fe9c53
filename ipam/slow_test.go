package ipam

import (
	"fmt"
	"testing"
	"time"
)

// Machines so slow that no answer comes within the time of one call lend nevertheless: who asks waits longer each time.
func TestSlowMachinesLend(t *testing.T) {
	simulate(t, sized(2, "10.0.0.0/24", 28), func(t *testing.T, c *cluster) {
		borrower := c.nodes[1]
		borrower.mustClaim("first")
		c.agree(time.Minute)
		c.mu.Lock()
		c.delay = askPatience / 2 // each way, at most
		c.mu.Unlock()
		before := borrower.up().Status()
		for i := range before.Free + 1 {
			if _, err := borrower.claim(fmt.Sprint("pod", i), 2*time.Minute); err != nil {
				t.Fatalf("claim %d of one that had %d addresses: %v", i, before.Free, err)
			}
		}
	})
}
