package ipam

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam/ring"
	"weft/ipam/space"
)

// ledger is what the users of a cluster were told: what they have, they must still have at the end.
type ledger struct {
	mu   sync.Mutex
	have map[string]netip.Addr // "node container"
}

func (l *ledger) given(t testing.TB, n *node, container string, addr netip.Addr) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	key := n.name + " " + container
	if old, ok := l.have[key]; ok && old != addr {
		t.Errorf("%s had %s and was told %s", key, old, addr)
	}
	l.have[key] = addr
}

func (l *ledger) releasing(n *node, container string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.have, n.name+" "+container)
}

// check verifies that every acknowledged claim is on the disk of its node.
func (l *ledger) check(t testing.TB, c *cluster) {
	t.Helper()
	for _, n := range c.nodes {
		st, err := load(n.disk.copy(), c.u, c.linked())
		if err != nil {
			t.Fatal(err)
		}
		have := make(map[string]netip.Addr)
		for _, claim := range st.claims {
			have[n.name+" "+claim.Container] = claim.Addr()
		}
		for key, addr := range l.have {
			if strings.HasPrefix(key, n.name+" ") && have[key] != addr {
				t.Errorf("%s was told %s and has %v", key, addr, have[key])
			}
		}
	}
}

// TestRandomLives plays claims, releases, restarts, crashes, joins and partitions over a network that loses, delays and
// repeats.
func TestRandomLives(t *testing.T) {
	seeds := 30
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			members := 3 + seed%5
			simulate(t, func(t *testing.T) *cluster {
				pool, atomBits := "10.0.0.0/22", 28
				if seed%5 == 4 {
					pool, atomBits = "fd00:1:2:3:4::/118", 124
				}
				c := newCluster(t, members, pool, atomBits)
				c.rand = rand.New(rand.NewPCG(uint64(seed), 0))
				c.loss, c.delay = 0.1, 200*time.Millisecond
				for _, n := range c.nodes[2:] {
					n.joined.Store(false)
				}
				if seed%3 == 0 {
					c.nodes[1].mute.Store(true)
				}
				return c
			}, func(t *testing.T, c *cluster) { randomLife(t, c) })
		})
	}
}

func randomLife(t *testing.T, c *cluster) {
	l := &ledger{have: make(map[string]netip.Addr)}
	for range 150 {
		n := c.nodes[c.intn(len(c.nodes))]
		container := fmt.Sprintf("c%d", c.intn(6))
		switch k := c.intn(20); {
		case k < 9:
			if claim, err := n.claim(container, 5*time.Second); err == nil {
				l.given(t, n, container, claim.Addr())
			}
		case k < 10: // an address by name, so that blocks are not only used from below
			a := n.up()
			if a == nil || len(a.Status().Blocks) == 0 {
				break
			}
			block := a.Status().Blocks[0]
			addr := block.Addr()
			for range c.intn(1 << (block.Addr().BitLen() - block.Bits())) {
				addr = addr.Next()
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			if claim, err := a.Claim(ctx, Request{Container: addr.String(), IfName: "eth0", Address: addr}); err == nil {
				l.given(t, n, addr.String(), claim.Addr())
			}
			cancel()
		case k < 13:
			if a := n.up(); a != nil {
				l.releasing(n, container)
				_, _ = a.Release(t.Context(), container, "")
			}
		case k < 15:
			if n.joined.Load() {
				n.stop()
				if c.intn(2) == 0 {
					n.disk.failAt = n.disk.commits + 2 + c.intn(6)
					n.disk.after = c.intn(2) == 0
				}
				n.start()
			}
		case k < 16:
			n.stop()
		case k < 17:
			n.disk.mu.Lock()
			n.disk.crashAt, n.disk.after = n.disk.commits+1+c.intn(3), c.intn(2) == 0
			n.disk.mu.Unlock()
		case k < 18:
			sides := make([]int, len(c.nodes))
			for i := range sides {
				sides[i] = c.intn(2)
			}
			c.part(sides...)
		case k < 19:
			c.part()
		default:
			n.joined.Store(true) // its join has reached everybody
		}
		if c.intn(3) == 0 {
			c.start()
		}
		time.Sleep(time.Duration(c.intn(3000)) * time.Millisecond)
		c.check()
	}
	// All is well again: everybody is confirmed, has what it was told, and gets more.
	c.part()
	c.mu.Lock()
	c.loss = 0
	c.mu.Unlock()
	for _, n := range c.nodes {
		n.joined.Store(true)
		n.disk.mu.Lock()
		n.disk.crashAt, n.disk.failAt = 0, 0
		n.disk.mu.Unlock()
	}
	time.Sleep(time.Second)
	c.start()
	time.Sleep(time.Minute)
	c.agree(time.Minute)
	l.check(t, c)
	for _, n := range c.nodes {
		if s := n.up().Status(); s.State != StateReady {
			t.Errorf("%s: %+v", n.name, s)
		}
		n.mustClaim("last")
	}
}

// TestCrashAtEveryTransaction lets one machine die just before and just after each of its commits, in a story with
// start, grants, claims, release and hand-back, and then finish the story.
func TestCrashAtEveryTransaction(t *testing.T) {
	story := func(t *testing.T, victim, at int, after bool) (commits int) {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, 3, "10.0.0.0/24", 28)
			v := c.nodes[victim]
			v.disk.crashAt, v.disk.after = at, after
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			defer func() {
				cancel()
				wg.Wait()
				c.stop()
				c.check()
			}()
			wg.Go(func() { c.gossip(ctx) })
			if at > 0 && at <= 1 { // it dies while starting
				for _, n := range c.nodes {
					n.start()
				}
				time.Sleep(time.Millisecond)
			}
			l := &ledger{have: make(map[string]netip.Addr)}
			// Each step is repeated until it is done, as users do.
			until := func(what string, done func() error) {
				var err error
				for range 200 {
					c.start()
					if err = done(); err == nil {
						c.check()
						return
					}
					time.Sleep(500 * time.Millisecond)
				}
				t.Fatalf("%s: %v", what, err)
			}
			for _, n := range c.nodes {
				for i := range 3 {
					container := fmt.Sprintf("c%d", i)
					until(n.name+" claims", func() error {
						claim, err := n.claim(container, 20*time.Second)
						if err == nil {
							l.given(t, n, container, claim.Addr())
						}
						return err
					})
				}
			}
			for i := range 3 {
				container := fmt.Sprintf("c%d", i)
				until("release", func() error {
					l.releasing(v, container)
					a := v.up()
					if a == nil {
						return errCrashed
					}
					_, err := a.Release(t.Context(), container, "eth0")
					return err
				})
			}
			until("hand back", func() error {
				a := v.up()
				if a == nil {
					return errCrashed
				}
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				return a.HandBack(ctx)
			})
			v.disk.mu.Lock()
			commits = v.disk.commits
			v.disk.mu.Unlock()
			v.stop()
			time.Sleep(10 * time.Second)
			l.check(t, c)
			for _, n := range c.nodes {
				if a := n.up(); n != v && len(a.Blocks()[v.key.ID()]) != 0 {
					t.Errorf("%s believes that %s still has %v", n.name, v.name, a.Blocks()[v.key.ID()])
				}
			}
		})
		return commits
	}
	for victim := range 3 {
		commits := story(t, victim, 0, false)
		t.Logf("n%d commits %d times", victim+1, commits)
		for at := 1; at <= commits; at++ {
			for _, after := range []bool{false, true} {
				story(t, victim, at, after)
				if t.Failed() {
					t.Fatalf("n%d died at commit %d, durable: %v", victim+1, at, after)
				}
			}
		}
	}
}

func TestAnHourOfPartition(t *testing.T) {
	simulate(t, sized(5, "10.0.0.0/22", 28), func(t *testing.T, c *cluster) {
		l := &ledger{have: make(map[string]netip.Addr)}
		claim := func(n *node, container string) {
			if claim, err := n.claim(container, time.Minute); err == nil {
				l.given(t, n, container, claim.Addr())
			} else if !errors.Is(err, ErrNoAddress) {
				t.Errorf("%s: %v", n.name, err)
			}
		}
		for _, n := range c.nodes {
			claim(n, "before")
		}
		c.part(0, 1, 0, 1, 1)
		for i := range 60 {
			for _, n := range c.nodes {
				claim(n, fmt.Sprint("during", i))
			}
			if i == 20 { // one restarts in each half
				for _, n := range c.nodes[:2] {
					n.stop()
					n.start()
				}
			}
			time.Sleep(time.Minute)
			c.check()
		}
		c.part()
		c.agree(30 * time.Second)
		l.check(t, c)
		if len(l.have) < 5*20 {
			t.Errorf("only %d claims", len(l.have))
		}
		for _, n := range c.nodes {
			if s := n.up().Status(); s.State == StateUnconfirmed || s.Reason != "" && s.State == StateReady {
				t.Errorf("%s: %+v", n.name, s)
			}
		}
	})
}

func TestAWholeClusterStartsInAnyOrder(t *testing.T) {
	simulate(t, sized(4, "10.0.0.0/22", 28), func(t *testing.T, c *cluster) {
		l := &ledger{have: make(map[string]netip.Addr)}
		for _, n := range c.nodes {
			l.given(t, n, "pod", n.mustClaim("pod").Addr())
		}
		for round := range 4 {
			c.stop()
			for i := range c.nodes {
				c.nodes[(i+round)%4].start()
				time.Sleep(3 * time.Second)
			}
			time.Sleep(10 * time.Second)
			for _, n := range c.nodes {
				l.given(t, n, "pod", n.mustClaim("pod").Addr())
				if s := n.up().Status(); s.State != StateReady {
					t.Errorf("%s: %+v", n.name, s)
				}
			}
		}
	})
}

func TestADiskThatWasSetBackIsNoticed(t *testing.T) {
	for _, tt := range []struct {
		name string
		lost bool // nothing is left of n's disk, else it is a copy from before what follows
		do   func(c *cluster, n *node)
		want string
	}{
		{"by an empty disk", true, func(*cluster, *node) {}, "its disk was set back or copied"},
		{"by the number of the start", false, func(_ *cluster, n *node) {
			for range 2 {
				n.stop()
				n.start()
				time.Sleep(time.Second)
			}
		}, "has heard of start 3 of this node, and this is start 2"},
		{"by the start itself", false, func(_ *cluster, n *node) {
			n.stop()
			n.start()
			time.Sleep(time.Second)
		}, "has heard of start 2 of this node, and this is start 2"},
		{"by what it granted", false, func(c *cluster, _ *node) {
			c.nodes[2].joined.Store(true)
			c.start()
			time.Sleep(5 * time.Second)
		}, "this node granted "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			simulate(t, func(t *testing.T) *cluster {
				c := newCluster(t, 3, "10.0.0.0/22", 28)
				c.nodes[2].joined.Store(false)
				return c
			}, func(t *testing.T, c *cluster) {
				n := c.nodes[0]
				n.mustClaim("c")
				c.nodes[1].mustClaim("c")
				time.Sleep(time.Second)
				old := n.disk.copy()
				if tt.lost {
					old = newMemory()
				}
				tt.do(c, n)
				n.stop()
				now := n.disk
				n.disk = old
				n.start()
				time.Sleep(5 * time.Second)
				for range 2 { // it stays so after another start
					if s := n.up().Status(); s.State != StateWaiting || !strings.Contains(s.Reason, tt.want) {
						t.Errorf("%+v", s)
					}
					if _, err := n.claim("d", time.Second); !errors.Is(err, ErrNotReady) {
						t.Errorf("gave an address: %v", err)
					}
					if len(n.up().Claims()) != 1 && !tt.lost {
						t.Error("what is in use was forgotten")
					}
					n.stop()
					n.start()
				}
				n.stop()
				n.disk = now // so that the final check sees what is really owned
			})
		})
	}
}

func TestClaimsInParallel(t *testing.T) {
	simulate(t, sized(2, "10.32.0.0/20", 26), func(t *testing.T, c *cluster) {
		n := c.nodes[1]
		work := make(chan int)
		var mu sync.Mutex
		seen := make(map[netip.Addr]bool)
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for i := range work {
					claim, err := n.claim(fmt.Sprint("c", i), time.Minute)
					if err != nil {
						t.Error(err)
						continue
					}
					mu.Lock()
					if seen[claim.Addr()] {
						t.Errorf("%s given twice", claim.Addr())
					}
					seen[claim.Addr()] = true
					mu.Unlock()
				}
			})
		}
		for i := range 200 {
			work <- i
		}
		close(work)
		wg.Wait()
		if len(seen) != 200 || len(n.up().Claims()) != 200 {
			t.Errorf("%d addresses, %d claims", len(seen), len(n.up().Claims()))
		}
	})
}

// TestAThousandJoinsMakeAThousandRoutes plays the policy alone: who joins asks whoever can spare most, and takes one
// host address.
func TestAThousandJoinsMakeAThousandRoutes(t *testing.T) {
	const joins = 1000
	c := newCluster(t, joins+1, "10.32.0.0/12", 26)
	r := ring.New(c.u)
	spaces := make([]*space.Space, 1, joins+1)
	join := func(i int) {
		s := space.New(c.u.Pools(), time.Minute)
		s.SetBlocks(r.Blocks(c.nodes[i].key.ID()))
		addr, ok := s.Lowest()
		if !ok {
			t.Fatalf("node %d has no address", i)
		}
		s.Take(addr)
		spaces[i] = s
	}
	join(0)
	for i := 1; i <= joins; i++ {
		donor, best := -1, netip.Prefix{}
		for k, s := range spaces {
			if p, ok := s.Spare(keepFree); ok && (donor < 0 || p.Bits() < best.Bits()) {
				donor, best = k, p
			}
		}
		next, _, err := r.Grant(c.nodes[donor].key, best, c.nodes[i].key.ID())
		if err != nil {
			t.Fatal(err)
		}
		r = next
		spaces = append(spaces, nil)
		spaces[donor].SetBlocks(r.Blocks(c.nodes[donor].key.ID()))
		join(i)
	}
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	routes, largest, smallest := 0, 32, 0
	for id, blocks := range r.Owners() {
		if id == c.nodes[0].key.ID() {
			continue // the founder needs no route to itself
		}
		routes += len(blocks)
		for _, b := range blocks {
			largest, smallest = min(largest, b.Bits()), max(smallest, b.Bits())
		}
	}
	t.Logf("%d routes of /%d to /%d, %d grants, %d bytes", routes, largest, smallest, r.Len(), len(r.Encode()))
	if routes > joins {
		t.Errorf("%d routes", routes)
	}
}
