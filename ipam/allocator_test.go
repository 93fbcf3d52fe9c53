package ipam

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"weft/ipam/ring"
	"weft/ipam/space"
	"weft/mesh/peer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// simulate runs a story in a bubble: all machines started, gossip running, and everything ended and checked after it.
func simulate(t *testing.T, c func(t *testing.T) *cluster, story func(t *testing.T, c *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := c(t)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { c.gossip(ctx) })
		defer func() { // also when the story fails
			cancel()
			wg.Wait()
			c.stop()
			c.check()
		}()
		c.start()
		story(t, c)
	})
}

func sized(members int, prefix string, atomBits int) func(*testing.T) *cluster {
	return func(t *testing.T) *cluster { return newCluster(t, members, prefix, atomBits) }
}

func TestAClusterOfOneServesAtOnce(t *testing.T) {
	simulate(t, sized(1, "10.32.0.0/12", 26), func(t *testing.T, c *cluster) {
		begin := time.Now()
		n := c.nodes[0]
		claim := n.mustClaim("c1")
		if d := time.Since(begin); d != 0 {
			t.Errorf("took %s", d)
		}
		if claim.V4.String() != "10.32.0.2" || claim.V6.String() != "fd12:3456:789a::a20:2" {
			t.Errorf("claim %+v", claim)
		}
		if host, ok := n.up().HostAddress(); !ok || host.V4.String() != "10.32.0.1" {
			t.Errorf("host address %v", host)
		}
		blocks := n.up().Blocks()[n.key.ID()]
		if got := fmt.Sprint(blocks); got != "[10.32.0.0/12 fd12:3456:789a::a20:0/108]" {
			t.Error(got)
		}
		if s := n.up().Status(); s.State != StateReady || s.Reason != "" || s.Used != 2 || s.Free != 1<<20-4 {
			t.Errorf("status %+v", s)
		}
	})
}

func TestSequences(t *testing.T) {
	type step struct {
		do   string // claim, claim@ADDR, release, restart, wait
		who  string // container, or container/ifname
		want string // address, or a part of the error's text
	}
	for _, tt := range []struct {
		name  string
		pool  string
		steps []step
	}{
		{"the same interface gets the same address", "10.0.0.0/24", []step{
			{"claim", "a", "10.0.0.2"}, {"claim", "a", "10.0.0.2"}, {"claim", "a/eth1", "10.0.0.3"}, {"claim", "b", "10.0.0.4"},
		}},
		{"a claim outlives a restart", "10.0.0.0/24", []step{
			{"claim", "a", "10.0.0.2"}, {"restart", "", ""}, {"claim", "b", "10.0.0.3"}, {"claim", "a", "10.0.0.2"},
		}},
		{"a released address rests for a minute", "10.0.0.0/24", []step{
			{"claim", "a", "10.0.0.2"},
			{"release", "a", "10.0.0.2"},
			{"claim", "b", "10.0.0.3"},
			{"wait", "59s", ""},
			{"claim", "c", "10.0.0.4"},
			{"wait", "2s", ""},
			{"claim", "d", "10.0.0.2"},
		}},
		{"it rests through a restart", "10.0.0.0/24", []step{
			{"claim", "a", "10.0.0.2"},
			{"release", "a", "10.0.0.2"},
			{"restart", "", ""},
			{"claim", "b", "10.0.0.3"},
			{"wait", "61s", ""},
			{"claim", "d", "10.0.0.2"},
			{"restart", "", ""},
			{"claim", "e", "10.0.0.4"},
		}},
		{"release of a whole container", "10.0.0.0/24", []step{
			{"claim", "a", "10.0.0.2"},
			{"claim", "a/eth1", "10.0.0.3"},
			{"claim", "b", "10.0.0.4"},
			{"release", "a/", "10.0.0.2 10.0.0.3"},
			{"release", "a/", ""},
			{"claim", "b", "10.0.0.4"},
		}},
		{"an address by name", "10.0.0.0/24", []step{
			{"claim@10.0.0.77", "a", "10.0.0.77"},
			{"claim@10.0.0.77", "a", "10.0.0.77"},
			{"claim@10.0.0.78", "a", "eth0 of a has 10.0.0.77 already"},
			{"claim@10.0.0.77", "b", "10.0.0.77 belongs to eth0 of a"},
			{"claim@fd12:3456:789a::a00:4e", "b", "10.0.0.78"},
			{"claim@10.0.0.1", "c", "10.0.0.1 is the host's own"},
			{"claim@10.0.0.255", "c", "the first and the last address of a pool are not given to anybody"},
			{"claim@10.0.1.1", "c", "10.0.1.1 is in none of the cluster's pools"},
			{"claim@fd00::1", "c", "fd00::1 is in none of the cluster's pools"},
			{"release", "a", "10.0.0.77"},
			{"claim@10.0.0.77", "c", "10.0.0.77"},
		}},
		{"exhaustion", "10.0.0.0/29", []step{
			{"claim", "a", "10.0.0.2"},
			{"claim", "b", "10.0.0.3"},
			{"claim", "c", "10.0.0.4"},
			{"claim", "d", "10.0.0.5"},
			{"claim", "e", "10.0.0.6"},
			{"claim", "f", "no free address: no peer can lend in 10.0.0.0/29: no other member has any of it"},
			{"release", "b", "10.0.0.3"},
			{"claim", "f", "a released address is free again in 5"},
			{"wait", "1m", ""},
			{"claim", "f", "10.0.0.3"},
		}},
		{"a native IPv6 pool", "fd00:1::/48", []step{
			{"claim", "a", "fd00:1::2"},
			{"claim", "a", "fd00:1::2"},
			{"claim@fd00:1:0:77::5", "b", "fd00:1:0:77::5"},
			{"claim@fd00:1:0:77::", "c", "the first address of an IPv6 network means all of its routers"},
			{"claim@fd00:2::1", "c", "fd00:2::1 is in none of the cluster's pools"},
			{"claim@10.0.0.1", "c", "10.0.0.1 is in none of the cluster's pools"},
			{"claim@fd00:1::1", "c", "fd00:1::1 is the host's own"},
			{"release", "a", "fd00:1::2"},
			{"restart", "", ""},
			{"claim", "c", "fd00:1::3"},
			{"claim@fd00:1:0:77::5", "b", "fd00:1:0:77::5"},
			{"wait", "61s", ""},
			{"claim", "d", "fd00:1::2"},
		}},
		{"a bad request", "10.0.0.0/29", []step{{"claim", "", "a claim needs a container and an interface"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			atomBits := 29
			if strings.Contains(tt.pool, ":") {
				atomBits = 64
			}
			simulate(t, sized(1, tt.pool, atomBits), func(t *testing.T, c *cluster) {
				n := c.nodes[0]
				for i, s := range tt.steps {
					container, ifname, ok := strings.Cut(s.who, "/")
					if !ok {
						ifname = "eth0"
					}
					do, address, _ := strings.Cut(s.do, "@")
					got := ""
					switch do {
					case "claim":
						req := Request{Container: container, IfName: ifname}
						if address != "" {
							req.Address = netip.MustParseAddr(address)
						}
						claim, err := n.up().Claim(t.Context(), req)
						if got = claim.Addr().String(); err != nil {
							got = err.Error()
						}
					case "release":
						released, err := n.up().Release(t.Context(), container, ifname)
						if err != nil {
							t.Fatal(err)
						}
						for _, r := range released {
							got += " " + r.Addr().String()
						}
					case "restart":
						n.stop()
						n.start()
					case "wait":
						d, err := time.ParseDuration(s.who)
						if err != nil {
							t.Fatal(err)
						}
						time.Sleep(d)
					}
					got = strings.TrimSpace(got)
					if got != s.want && (!strings.Contains(s.want, " ") || !strings.Contains(got, s.want)) {
						t.Fatalf("step %d, %s %s: %q, want %q", i, s.do, s.who, got, s.want)
					}
				}
			})
		})
	}
}

func TestANewcomerGetsABlockBeforeItsFirstClaim(t *testing.T) {
	simulate(t, sized(3, "10.32.0.0/12", 26), func(t *testing.T, c *cluster) {
		for _, n := range c.nodes {
			n.mustClaim("c")
		}
		c.agree(time.Minute)
		owners := c.nodes[0].up().Blocks()
		if len(owners) != 3 {
			t.Errorf("blocks %v", owners)
		}
		for id, blocks := range owners {
			if len(blocks) != 2 { // one IPv4 block and its twin
				t.Errorf("%s has %v", c.find(id).name, blocks)
			}
		}
		for _, n := range c.nodes {
			if s := n.up().Status(); s.State != StateReady {
				t.Errorf("%s: %+v", n.name, s)
			}
		}
	})
}

// Of a native IPv6 pool each member has a range of networks for itself.
func TestMembersOfAnIPv6Pool(t *testing.T) {
	simulate(t, sized(3, "fd00:1::/48", 64), func(t *testing.T, c *cluster) {
		for _, n := range c.nodes {
			n.mustClaim("c")
		}
		c.agree(time.Minute)
		for _, n := range c.nodes {
			s := n.up().Status()
			if s.State != StateReady || len(s.Blocks) != 1 || s.Blocks[0].Bits() > 51 || s.Used != 2 || s.Free < 1<<52 {
				t.Errorf("%s: %+v", n.name, s)
			}
		}
		c.nodes[2].stop()
		for _, n := range c.nodes[:2] {
			if s := n.up().Status(); s.Unreachable > space.Many || s.Unreachable < 0 {
				t.Errorf("%s: %+v", n.name, s)
			}
		}
	})
}

// A claim has one address of a pool, so there are no pools of both families.
func TestPoolsOfTwoFamiliesAreRefused(t *testing.T) {
	four, six := netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("fd00:1::/48")
	for _, tt := range []struct {
		pools  []ring.Pool
		linked netip.Prefix
		want   string
	}{
		{[]ring.Pool{{Prefix: four, AtomBits: 26}, {Prefix: six, AtomBits: 64}}, netip.Prefix{}, "the pools of one cluster are IPv4 or IPv6"},
		{[]ring.Pool{{Prefix: six, AtomBits: 64}}, linked6, "pool fd00:1::/48 is IPv6 itself"},
		{[]ring.Pool{{Prefix: four, AtomBits: 26}}, six, "want a /96"},
	} {
		u, err := ring.NewUniverse([32]byte{7}, peer.ID{1}, tt.pools)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := New(Config{Universe: u, Linked6: tt.linked}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, linked %v: %v", tt.pools, tt.linked, err)
		}
	}
}

func TestARepeatedRequestGetsTheSameBlock(t *testing.T) {
	simulate(t, sized(3, "10.32.0.0/12", 26), func(t *testing.T, c *cluster) {
		c.nodes[1].stop() // it speaks through the test now
		c.nodes[2].stop()
		a := c.nodes[0].up()
		to := c.nodes[1].key.ID()
		ask := func(request byte) (digest []byte, answer grantAnswer) {
			t.Helper()
			b, err := a.HandleCall(t.Context(), to, methodGrant, grantRequest{requestID{request}}.encode())
			if err != nil {
				t.Fatal(err)
			}
			if answer, err = parseGrantAnswer(b); err != nil {
				t.Fatal(err)
			}
			return a.Digest(), answer
		}
		first, answer := ask(1)
		second, again := ask(1)
		if !bytes.Equal(first, second) || !bytes.Equal(answer.ring, again.ring) {
			t.Error("the same request got another block")
		}
		third, answer := ask(2)
		if bytes.Equal(first, third) {
			t.Error("another request got no block")
		}
		c.nodes[0].stop()
		c.nodes[0].start()
		a = c.nodes[0].up()
		fourth, again := ask(2)
		if !bytes.Equal(third, fourth) || !bytes.Equal(answer.ring, again.ring) {
			t.Error("after a restart the same request got another block")
		}
		if _, err := a.HandleCall(t.Context(), peer.ID{1}, methodGrant, grantRequest{requestID{1}}.encode()); err == nil {
			t.Error("somebody who is no member got an answer")
		}
		if _, err := a.HandleCall(t.Context(), to, "ipam.take", nil); err == nil {
			t.Error("an unknown call got an answer")
		}
	})
}

func TestHandBackRefusesWhileAddressesAreInUse(t *testing.T) {
	simulate(t, sized(2, "10.32.0.0/12", 26), func(t *testing.T, c *cluster) {
		n := c.nodes[1]
		n.mustClaim("c")
		if err := n.up().HandBack(t.Context()); !errors.Is(err, ErrInUse) {
			t.Error(err)
		}
		if _, err := n.up().Release(t.Context(), "c", ""); err != nil {
			t.Error(err)
		}
		if err := n.up().HandBack(t.Context()); err != nil {
			t.Error(err)
		}
		if err := n.up().HandBack(t.Context()); err != nil {
			t.Errorf("again: %v", err)
		}
		if _, err := n.claim("d", time.Second); !errors.Is(err, ErrNotReady) {
			t.Error(err)
		}
		if got := fmt.Sprint(c.nodes[0].up().Status().Blocks); got != "[10.32.0.0/12]" {
			t.Errorf("n1 has %s", got)
		}
		if err := c.nodes[0].up().HandBack(t.Context()); err != nil {
			t.Errorf("the founder cannot leave: %v", err)
		}
	})
}

func TestMoreSpaceIsAskedForAheadOfNeed(t *testing.T) {
	simulate(t, sized(2, "10.0.0.0/24", 28), func(t *testing.T, c *cluster) {
		n := c.nodes[1]
		n.mustClaim("c0")
		before := n.up().Status()
		for i := range (before.Used+before.Free)*3/4 + 1 {
			n.mustClaim(fmt.Sprintf("c%d", i))
		}
		time.Sleep(time.Second)
		if after := n.up().Status(); after.Used+after.Free <= before.Used+before.Free {
			t.Errorf("%+v, then %+v", before, after)
		}
	})
}

func TestExhaustionIsSaidWithinTheDeadline(t *testing.T) {
	simulate(t, sized(5, "10.0.0.0/25", 28), func(t *testing.T, c *cluster) {
		for _, n := range c.nodes {
			n.mustClaim("c")
		}
		c.agree(time.Minute)
		n := c.nodes[4]
		for i := 0; ; i++ { // all that n2 to n5 have or can get
			if _, err := n.claim(fmt.Sprintf("x%d", i), 10*time.Second); err != nil {
				if !errors.Is(err, ErrNoAddress) || !strings.Contains(err.Error(), "no peer can lend in 10.0.0.0/25: 4 full") {
					t.Fatal(err)
				}
				break
			}
		}
		for _, m := range c.nodes[:3] {
			m.stop()
		}
		begin := time.Now()
		_, err := n.claim("y", 5*time.Second)
		if d := time.Since(begin); d >= 5*time.Second {
			t.Errorf("the answer took %s", d)
		}
		if !errors.Is(err, ErrNoAddress) ||
			!strings.Contains(err.Error(), "no peer can lend in 10.0.0.0/25: 3 unreachable (n1, n2, n3), 1 full") {
			t.Error(err)
		}
		if s := n.up().Status(); s.State != StateWaiting || s.Unreachable == 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestARestartIsConfirmedByAQuorum(t *testing.T) {
	simulate(t, sized(3, "10.32.0.0/12", 26), func(t *testing.T, c *cluster) {
		n := c.nodes[2]
		n.mustClaim("c")
		c.agree(time.Minute)
		n.stop()
		n.start()
		if s := n.up().Status(); s.State != StateWaiting {
			t.Errorf("at once: %+v", s)
		}
		n.mustClaim("d")
		if s := n.up().Status(); s.State != StateReady || s.Reason != "" {
			t.Errorf("after a claim: %+v", s)
		}
	})
}

func TestWithoutAQuorumServiceIsUnconfirmed(t *testing.T) {
	simulate(t, sized(3, "10.32.0.0/12", 26), func(t *testing.T, c *cluster) {
		for _, n := range c.nodes {
			n.mustClaim("c")
		}
		c.agree(time.Minute)
		n := c.nodes[2]
		n.stop()
		c.part(0, 0, 1)
		n.start()
		if _, err := n.claim("d", 5*time.Second); !errors.Is(err, ErrNotReady) ||
			!strings.Contains(err.Error(), "restarted and heard 1 of 3 voters, waits for n1, n2") {
			t.Error(err)
		}
		begin := time.Now()
		n.mustClaim("d")
		if d := time.Since(begin); d > 6*time.Second {
			t.Errorf("served after %s", d)
		}
		s := n.up().Status()
		if s.State != StateUnconfirmed || len(s.WaitsFor) != 2 ||
			s.Reason != "restarted and heard 1 of 3 voters, waits for n1, n2" {
			t.Errorf("%+v", s)
		}
		if _, err := n.up().HandleCall(t.Context(), c.nodes[0].key.ID(), methodGrant, grantRequest{}.encode()); err != nil {
			t.Error(err)
		} else if blocks := n.up().Blocks()[n.key.ID()]; len(blocks) != 2 || fmt.Sprint(blocks) != fmt.Sprint(c.nodes[0].up().Blocks()[n.key.ID()]) {
			t.Errorf("lent while unconfirmed: %v", blocks)
		}
		c.part()
		time.Sleep(15 * time.Second)
		if s := n.up().Status(); s.State != StateReady {
			t.Errorf("after the partition: %+v", s)
		}
	})
}

func TestStrictWaitsForTheQuorum(t *testing.T) {
	simulate(t, sized(2, "10.32.0.0/12", 26), func(t *testing.T, c *cluster) {
		n := c.nodes[1]
		n.mustClaim("c")
		n.stop()
		c.part(0, 1)
		n.strict = true
		n.start()
		if _, err := n.claim("d", 5*time.Minute); !errors.Is(err, ErrNotReady) {
			t.Error(err)
		}
		if claims := n.up().Claims(); len(claims) != 1 {
			t.Errorf("claims %v", claims)
		}
		c.part()
		n.mustClaim("d")
	})
}

func TestAVoterlessMemberNeedsTheVoters(t *testing.T) {
	simulate(t, sized(3, "10.32.0.0/12", 26), func(t *testing.T, c *cluster) {
		n := c.nodes[2]
		n.mute.Store(true)
		n.mustClaim("c")
		n.stop()
		c.part(0, 1, 1) // with n2, which is half of the voters, but not the senior one
		n.start()
		time.Sleep(15 * time.Second)
		if s := n.up().Status(); s.State != StateUnconfirmed || len(s.WaitsFor) != 1 {
			t.Errorf("%+v", s)
		}
		c.part(0, 1, 0) // with n1, the senior half
		time.Sleep(15 * time.Second)
		if s := n.up().Status(); s.State != StateReady {
			t.Errorf("%+v", s)
		}
	})
}

func TestVotersThatOthersKnowCountToo(t *testing.T) {
	simulate(t, sized(5, "10.32.0.0/12", 26), func(t *testing.T, c *cluster) {
		for _, n := range c.nodes {
			n.mustClaim("c")
		}
		n := c.nodes[0]
		n.stop()
		// n1's own list is from before n4 and n5 joined: it and n2 would be a quorum of that.
		n.disk.reboot()
		cfg := n.config()
		cfg.Network = &oldList{node: n, known: 3}
		a, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.part(0, 0, 1, 1, 1)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := a.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(20 * time.Second)
		if s := a.Status(); s.State != StateUnconfirmed || s.Reason != "restarted and heard 2 of 5 voters, waits for n3, n4, n5" {
			t.Errorf("%+v", s)
		}
		c.part()
		time.Sleep(20 * time.Second)
		if s := a.Status(); s.State != StateReady {
			t.Errorf("%+v", s)
		}
		cancel()
		wg.Wait()
	})
}

// oldList is a network whose list of voters is out of date.
type oldList struct {
	*node
	known int
}

func (o *oldList) Voters() []peer.Voter { return o.node.Voters()[:o.known] }
