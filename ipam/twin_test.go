package ipam

import (
	"strings"
	"testing"
	"time"
)

// TestACopyIsToldBeforeItHasATunnel: of two machines with one identity the second one that comes to a voter learns so by the
// question that it asks before any tunnel; a machine that was only started again has its tunnels, also where nobody answers.
func TestACopyIsToldBeforeItHasATunnel(t *testing.T) {
	for _, copied := range []bool{false, true} {
		simulate(t, func(t *testing.T) *cluster { return newCluster(t, 3, "10.0.0.0/22", 28) }, func(t *testing.T, c *cluster) {
			n, voter := c.nodes[0], c.nodes[1]
			time.Sleep(5 * time.Second)
			n.stop()
			now, old := n.disk, n.disk.copy()
			n.start()
			time.Sleep(5 * time.Second)
			n.stop()
			if copied {
				n.disk = old
			}
			c.part(1, 0, 0)
			n.start()
			time.Sleep(15 * time.Second)
			if s := n.up().Status(); s.State != StateUnconfirmed {
				t.Fatalf("it is %s: %s", s.State, s.Reason)
			}
			if err := n.up().Introduce(t.Context(), voter.id()); err != nil {
				t.Errorf("no tunnel though nobody knows of another: %v", err)
			}
			c.part()
			err := n.up().Introduce(t.Context(), voter.id())
			if told := err != nil && strings.Contains(err.Error(), "set back or copied"); told != copied {
				t.Errorf("copied=%t: %v", copied, err)
			}
			a := n.up()
			a.mu.RLock()
			answered := a.answered.Has(voter.id())
			a.mu.RUnlock()
			if answered == copied {
				t.Errorf("copied=%t: the voter was not asked, or its answer counts", copied)
			}
			n.stop()
			n.disk = now // so that the final check sees what is really owned
		})
	}
}
