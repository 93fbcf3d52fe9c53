package weftd

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"weft/plugin/docker"
	"weft/router/host"
)

// segmentOwner owns the part of weft's nftables table that is about Docker's networks.
const segmentOwner = "docker"

// Where its chains look: destinations of published ports are changed where everybody does that.
const (
	prioritySegments = 10
	priorityPublish  = -100
)

// segmentFilter is the filter as a value. Within a network everybody reaches everybody; machines reach their containers, and
// containers answer; else an address in a network exchanges nothing with the rest of the pools. Both ends check.
func segmentFilter(own docker.Arrangement, members map[string][]netip.Addr, hosts []netip.Addr, pools []netip.Prefix) host.Ruleset {
	rs := host.Ruleset{Owner: segmentOwner}
	name := func(s string) string { return segmentOwner + "." + s }
	set := func(s string, interval bool, elements []string) {
		four, six := split(elements)
		rs.Sets = append(rs.Sets, host.FilterSet{Name: name(s + "4"), Type: "ipv4_addr", Interval: interval, Elements: four},
			host.FilterSet{Name: name(s + "6"), Type: "ipv6_addr", Interval: interval, Elements: six})
	}
	if len(members)+len(own.Internal) > 0 {
		set("pools", true, texts(pools))
		set("hosts", false, texts(hosts))
		set("internal", false, texts(own.Internal))
		var apart []netip.Addr
		for _, n := range own.Networks {
			apart = append(apart, n.Members...)
		}
		set("apart", false, texts(apart))
		rules := []string{
			`ct state established,related accept`,
			`ip saddr @docker.internal4 ip daddr != @docker.pools4 counter drop comment "docker-internal"`,
			`ip6 saddr @docker.internal6 ip6 daddr != @docker.pools6 counter drop comment "docker-internal"`,
		}
		for _, network := range slices.Sorted(maps.Keys(members)) {
			id := "net_" + segmentID(network)
			set(id+"_", false, texts(members[network]))
			rules = append(rules, fmt.Sprintf(`ip saddr @docker.%s_4 ip daddr @docker.%s_4 accept`, id, id),
				fmt.Sprintf(`ip6 saddr @docker.%s_6 ip6 daddr @docker.%s_6 accept`, id, id))
		}
		rs.Chains = append(rs.Chains, host.Chain{
			Name: name("apart"), Hook: host.Forward, Priority: prioritySegments, Rules: append(
				rules,
				`ip saddr @docker.hosts4 accept`,
				`ip6 saddr @docker.hosts6 accept`,
				`ip daddr @docker.hosts4 accept`,
				`ip6 daddr @docker.hosts6 accept`,
				`ip saddr @docker.apart4 ip daddr @docker.pools4 counter drop comment "docker-network"`,
				`ip6 saddr @docker.apart6 ip6 daddr @docker.pools6 counter drop comment "docker-network"`,
				`ip daddr @docker.apart4 ip saddr @docker.pools4 counter drop comment "docker-network"`,
				`ip6 daddr @docker.apart6 ip6 saddr @docker.pools6 counter drop comment "docker-network"`,
			),
		})
	}
	if len(own.Ports) > 0 {
		rules := publishRules(own.Ports)
		rs.Chains = append(rs.Chains,
			host.Chain{Name: name("publish"), Hook: host.Prerouting, Priority: priorityPublish, NAT: true, Rules: rules},
			host.Chain{Name: name("publish_local"), Hook: host.Output, Priority: priorityPublish, NAT: true, Rules: rules})
	}
	return rs
}

// publishRules lead ports of the machine to containers.
func publishRules(ports []docker.Port) (rules []string) {
	for _, p := range ports {
		at, proto, family := "fib daddr type local", "tcp", "ip"
		if p.Container.Is6() {
			family = "ip6"
		}
		if p.Host.IsValid() {
			at = family + " daddr " + p.Host.String()
		}
		if p.UDP {
			proto = "udp"
		}
		rules = append(rules, fmt.Sprintf("%s %s dport %d dnat %s to %s", at, proto, p.HostPort, family, netip.AddrPortFrom(p.Container, p.Port)))
	}
	slices.Sort(rules)
	return rules
}

// segmentID is a network's name as nftables can have it in a set's.
func segmentID(network string) string {
	sum := sha256.Sum256([]byte(network))
	return hex.EncodeToString(sum[:6])
}

// texts writes addresses or prefixes, sorted and once each.
func texts[T fmt.Stringer](all []T) []string {
	out := make([]string, 0, len(all))
	for _, a := range all {
		out = append(out, a.String())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// split sorts texts of addresses and prefixes by family.
func split(all []string) (v4, v6 []string) {
	for _, s := range all {
		if slices.Contains([]byte(s), ':') {
			v6 = append(v6, s)
		} else {
			v4 = append(v4, s)
		}
	}
	return v4, v6
}
