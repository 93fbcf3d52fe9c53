package host_test

import (
	"context"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"weft/router/host"
	"weft/router/host/hosttest"
)

func TestFilterSettlesAtOnceAndStaysSettled(t *testing.T) {
	ns := hosttest.NewNS(t)
	h := ns.Host()
	rs := host.Ruleset{
		Sets: []host.FilterSet{
			{Name: "a4", Type: "ipv4_addr", Interval: true, Elements: []string{"10.0.0.0/8", "10.32.0.0/12", "0.0.0.0/1", "192.0.2.1"}},
			{Name: "a6", Type: "ipv6_addr", Interval: true, Elements: []string{"fd00::/96", "ff00::/8"}},
			{Name: "h4", Type: "ipv4_addr", Elements: []string{"192.0.2.1"}},
			{Name: "p4", Type: "ifname . ipv4_addr", Elements: []string{"wf0 . 10.0.0.1", "wf1 . 10.0.0.2"}},
			{Name: "p6", Type: "ifname . ipv6_addr", Elements: []string{"wf0 . fd00::1"}},
			{Name: "n4", Type: "ipv4_addr . inet_service", Elements: []string{"192.0.2.1 . 6783"}},
			{Name: "ports", Type: "inet_service", Elements: []string{"6783", "6784"}},
			{Name: "m4", Type: "ether_addr . ipv4_addr", Interval: true, Elements: []string{"02:00:00:00:00:01 . 10.0.0.0/24"}},
			{Name: "m6", Type: "ether_addr . ipv6_addr", Interval: true, Elements: []string{"02:00:00:00:00:01 . fd00::/120"}},
		},
		Chains: []host.Chain{
			{Name: "in", Hook: host.Prerouting, Priority: -450, Rules: []string{
				`iifname "wf*" iifname . ip saddr @p4 accept`,
				`iifname . ip6 saddr @p6 accept`,
				`iifname "weft-vx" ether saddr . ip saddr != @m4 counter drop comment "x"`,
				`ether saddr . ip6 saddr != @m6 counter drop comment "x"`,
				`ip saddr @a4 ip daddr != @a4 jump sub`,
			}},
			{Name: "sub", Rules: []string{
				`ct state established,related accept`,
				`meta l4proto icmp accept`,
				`ip daddr . tcp dport @n4 drop`,
				`udp dport @ports counter drop comment "ports"`,
				`meta nfproto ipv6 udp dport 6785 drop`,
			}},
			{Name: "nat", Hook: host.Postrouting, Priority: 100, NAT: true, Rules: []string{`oifname "lo" return`, `ip saddr @a4 masquerade fully-random`}},
			{Name: "clamp", Hook: host.Forward, Priority: -150, Rules: []string{
				`iifname "weft-*" tcp flags syn tcp option maxseg size set rt mtu`,
			}},
			{Name: "publish", Hook: host.Prerouting, Priority: -100, NAT: true, Rules: []string{
				`fib daddr type local tcp dport 8080 dnat ip to 10.32.0.5:80`,
				`ip daddr 192.0.2.7 udp dport 53 dnat ip to 10.32.0.5:53`,
				`fib daddr type local tcp dport 8080 dnat ip6 to [fd00::5]:80`,
				`ip6 daddr 2001:db8::7 udp dport 53 dnat ip6 to [fd00::5]:53`,
			}},
		},
	}
	n, err := h.Filter(t.Context(), rs)
	if err != nil || n == 0 {
		t.Fatalf("first: %d changes, %v", n, err)
	}
	if n, err := h.Filter(t.Context(), rs); err != nil || n != 0 {
		t.Fatalf("second: %d changes, %v; want none", n, err)
	}
	if n, err := ns.Host().Filter(t.Context(), rs); err != nil || n != 0 {
		t.Fatalf("from another process: %d changes, %v; want none", n, err)
	}
	// Another owner's part neither disturbs nor is disturbed.
	vx := host.Ruleset{
		Owner: "vx", Sets: []host.FilterSet{{Name: "vx.s", Type: "ipv4_addr", Elements: []string{"192.0.2.9"}}},
		Chains: []host.Chain{{Name: "vx.in", Hook: host.Input, Rules: []string{`ip saddr @vx.s drop`}}},
	}
	if n, err := h.Filter(t.Context(), vx); err != nil || n == 0 {
		t.Fatalf("other owner: %d changes, %v", n, err)
	}
	if n, err := h.Filter(t.Context(), rs); err != nil || n != 0 {
		t.Fatalf("after the other owner: %d changes, %v; want none", n, err)
	}
	rs.Sets[0].Elements = []string{"10.0.0.0/9", "10.128.0.0/9"}
	rs.Chains[1].Rules = rs.Chains[1].Rules[1:]
	if n, err := h.Filter(t.Context(), rs); err != nil || n == 0 {
		t.Fatalf("changed: %d changes, %v", n, err)
	}
	if n, err := h.Filter(t.Context(), host.Ruleset{Owner: "vx"}); err != nil || n == 0 {
		t.Fatalf("withdraw: %d changes, %v", n, err)
	}
	if _, err := h.Drops(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.RemoveFilter(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.RemoveFilter(t.Context()); err != nil {
		t.Fatalf("again: %v", err)
	}
}

func TestFilterRefusesWhatItDoesNotKnowBeforeAnyChange(t *testing.T) {
	h := hosttest.NewNS(t).Host()
	for name, rs := range map[string]host.Ruleset{
		"word":     {Chains: []host.Chain{{Name: "c", Rules: []string{`ip length 5 drop`}}}},
		"no set":   {Chains: []host.Chain{{Name: "c", Rules: []string{`ip saddr @x drop`}}}},
		"bad type": {Sets: []host.FilterSet{{Name: "x", Type: "ipv6_addr"}}, Chains: []host.Chain{{Name: "c", Rules: []string{`ip saddr @x drop`}}}},
		"owner":    {Owner: "vx", Chains: []host.Chain{{Name: "c"}}},
		"element":  {Sets: []host.FilterSet{{Name: "x", Type: "ipv4_addr", Elements: []string{"fd00::1"}}}},
		"early":    {Chains: []host.Chain{{Name: "c", Rules: []string{`ip saddr`}}}},
		"dnat":     {Chains: []host.Chain{{Name: "c", NAT: true, Rules: []string{`tcp dport 80 dnat ip to [fd00::1]:80`}}}},
		"dnat6":    {Chains: []host.Chain{{Name: "c", NAT: true, Rules: []string{`tcp dport 80 dnat ip6 to 10.32.0.5:80`}}}},
		"quote":    {Chains: []host.Chain{{Name: "c", Rules: []string{`iifname "x`}}}},
	} {
		if _, err := h.Filter(t.Context(), rs); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Any sequence of prefix sets must be reachable by deltas: the kernel refuses overlaps that a careless order makes.
func TestIntervalSetsFollowAnySequence(t *testing.T) {
	h := hosttest.NewNS(t).Host()
	rapid.Check(t, func(t *rapid.T) {
		var elements []string
		for range rapid.IntRange(0, 12).Draw(t, "n") {
			a := netip.AddrFrom4([4]byte{10, 0, byte(rapid.IntRange(0, 3).Draw(t, "c")), rapid.Byte().Draw(t, "d")})
			p := netip.PrefixFrom(a, rapid.IntRange(20, 32).Draw(t, "bits")).Masked()
			elements = append(elements, p.String())
		}
		if rapid.Bool().Draw(t, "high") {
			elements = append(elements, "255.255.255.0/24")
		}
		rs := host.Ruleset{Sets: []host.FilterSet{{Name: "s", Type: "ipv4_addr", Interval: true, Elements: elements}}}
		if _, err := h.Filter(context.Background(), rs); err != nil {
			t.Fatalf("%v: %v", elements, err)
		}
		if n, err := h.Filter(context.Background(), rs); err != nil || n != 0 {
			t.Fatalf("%v: %d changes more, %v", elements, n, err)
		}
	})
}

// A node of a cluster of a thousand reads and compares this every 30 s, and once per pod.
func BenchmarkFilterThousandPeers(b *testing.B) {
	h := hosttest.NewNS(b).Host()
	var blocks, nodes []string
	for i := range 1000 {
		blocks = append(blocks, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(32 + i>>6), byte(i << 2), 0}), 22).String())
		nodes = append(nodes, netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}).String()+" . 6783")
	}
	rs := host.Ruleset{Sets: []host.FilterSet{
		{Name: "peers4", Type: "ipv4_addr", Interval: true, Elements: blocks},
		{Name: "nodes4", Type: "ipv4_addr . inet_service", Elements: nodes},
	}}
	if _, err := h.Filter(b.Context(), rs); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if n, err := h.Filter(b.Context(), rs); n != 0 || err != nil {
			b.Fatal(n, err)
		}
	}
}
