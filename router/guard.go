package router

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weft/router/host"
)

// Priorities of base chains. The guard of what comes in stands before the kernel puts fragments together (-400), so that
// each fragment is checked by itself; the guard of what goes out stands after source NAT (100), so that it sees the
// addresses that the wire would see.
const (
	priorityIn  = -450
	priorityNAT = 100
	priorityOut = 200
)

// weftPorts are those that every node may listen on: metrics, everything, kernel WireGuard, VXLAN.
var weftPorts = [...]uint16{6782, 6783, 6784, 6785}

// guard is the router's part of the nftables table. Its chains hold, whatever the routes say:
//
//   - a pod sends from its own addresses only;
//   - a transport's device brings packets of peers' blocks to local pods and host addresses only, and the latter get
//     answers and ICMP;
//   - nothing else brings packets from the pools, nor to them but from --no-masquerade networks;
//   - packets from or to the pools leave through transports, pods' veths and loopback only, except to --no-masquerade
//     networks;
//   - pods reach no port of weft on any node;
//   - what pods send to the world carries the host's address.
//
// Only elements of sets change from day to day; a chain changes with the pools, with --host-access and with new versions
// of weft. What every packet meets is kept short: one chain per hook, which goes to another by the device's name and never
// comes back, and pools as masks in the rules rather than sets.
func guard(in Input, pods []Pod) host.Ruleset {
	var local []netip.Addr
	var pods4, pods6 []string
	for _, p := range pods {
		name := p.link()
		if p.V4.IsValid() {
			pods4, local = append(pods4, name+" . "+p.V4.String()), append(local, p.V4)
		}
		if p.V6.IsValid() {
			pods6, local = append(pods6, name+" . "+p.V6.String()), append(local, p.V6)
		}
		for _, a := range slices.Concat(in.Siblings[p.V4], in.Siblings[p.V6]) {
			if a.Is4() {
				pods4 = append(pods4, name+" . "+a.String())
			} else {
				pods6 = append(pods6, name+" . "+a.String())
			}
		}
	}
	local = append(local, in.Hosts...)
	var blocks []netip.Prefix
	var nodes4, nodes6 []string
	for _, p := range in.Peers {
		blocks = append(blocks, p.Blocks...)
		for _, e := range append(slices.Clone(p.Info.Endpoints), p.Endpoint) {
			switch e = netip.AddrPortFrom(e.Addr().Unmap(), e.Port()); {
			case !e.IsValid() || e.Addr().Zone() != "":
			case e.Addr().Is4():
				nodes4 = append(nodes4, e.Addr().String()+" . "+strconv.Itoa(int(e.Port())))
			default:
				nodes6 = append(nodes6, e.Addr().String()+" . "+strconv.Itoa(int(e.Port())))
			}
		}
	}
	ports := slices.Concat(weftPorts[:], in.Ports)
	slices.Sort(ports)
	var portWords []string
	for _, p := range slices.Compact(ports) {
		portWords = append(portWords, strconv.Itoa(int(p)))
	}

	var sets []host.FilterSet
	interval := func(name string, prefixes []netip.Prefix) {
		v4, v6 := byFamily(prefixes)
		sets = append(sets, host.FilterSet{Name: name + "4", Type: "ipv4_addr", Interval: true, Elements: v4},
			host.FilterSet{Name: name + "6", Type: "ipv6_addr", Interval: true, Elements: v6})
	}
	interval("pools", in.Pools)
	interval("peers", blocks)
	interval("plain", in.NoMasquerade)
	local4, local6 := byFamily(hostPrefixes(local))
	sets = append(sets,
		host.FilterSet{Name: "local4", Type: "ipv4_addr", Elements: local4},
		host.FilterSet{Name: "local6", Type: "ipv6_addr", Elements: local6},
		host.FilterSet{Name: "pods4", Type: "ifname . ipv4_addr", Elements: sorted(pods4)},
		host.FilterSet{Name: "pods6", Type: "ifname . ipv6_addr", Elements: sorted(pods6)},
		host.FilterSet{Name: "nodes4", Type: "ipv4_addr . inet_service", Elements: sorted(nodes4)},
		host.FilterSet{Name: "nodes6", Type: "ipv6_addr . inet_service", Elements: sorted(nodes6)},
		host.FilterSet{Name: "ports", Type: "inet_service", Elements: portWords},
	)

	toPools := func(field, target string) (rules []string) {
		for _, pool := range in.Pools {
			family := "ip"
			if pool.Addr().Is6() {
				family = "ip6"
			}
			rules = append(rules, fmt.Sprintf("%s %s %s goto %s", family, field, pool.Masked(), target))
		}
		return rules
	}
	// Guests behind devices that are not named like ours cost every packet a look, so only where there are any.
	guests := func(rules ...string) []string {
		if !slices.ContainsFunc(pods, func(p Pod) bool { return !strings.HasPrefix(p.link(), host.VethPrefix) }) {
			return nil
		}
		return rules
	}
	peerToHost := []string{
		`jump weft_ports`,
		`ct state established,related accept`,
		`meta l4proto icmp accept`,
		`meta l4proto ipv6-icmp accept`,
		`counter drop comment "host-access"`,
	}
	if in.HostAccessAll {
		peerToHost = []string{`goto weft_ports`}
	}
	chains := []host.Chain{
		{Name: "incoming", Hook: host.Prerouting, Priority: priorityIn, Rules: []string{
			`iifname "weft-*" goto from_peer`,
			`iifname "wf*" goto from_pod`,
			`iifname != "lo" goto from_outside`,
		}},
		{Name: "from_pod", Rules: []string{
			`iifname . ip saddr @pods4 accept`,
			`iifname . ip6 saddr @pods6 accept`,
			// Neighbour discovery from a link-local address: the permanent neighbours make it needless.
			`meta l4proto ipv6-icmp drop`,
			`counter drop comment "pod-source"`,
		}},
		{Name: "from_peer", Rules: []string{
			`ip saddr @peers4 ip daddr @local4 accept`,
			`ip6 saddr @peers6 ip6 daddr @local6 accept`,
			`ip saddr @peers4 counter drop comment "peer-destination"`,
			`ip6 saddr @peers6 counter drop comment "peer-destination"`,
			`counter drop comment "peer-source"`,
		}},
		{Name: "from_outside", Rules: append(toPools("saddr", "outside_source"), toPools("daddr", "outside_destination")...)},
		{Name: "outside_source", Rules: append(guests(
			`iifname . ip saddr @pods4 accept`,
			`iifname . ip6 saddr @pods6 accept`,
		), `counter drop comment "outside-source"`)},
		{Name: "outside_destination", Rules: []string{
			`ip saddr != @plain4 counter drop comment "outside-destination"`,
			`ip6 saddr != @plain6 counter drop comment "outside-destination"`,
		}},
		{Name: "to_host", Hook: host.Input, Rules: append([]string{
			`iifname "weft-*" goto peer_to_host`,
			`iifname "wf*" goto weft_ports`,
		}, guests(
			`iifname . ip saddr @pods4 goto weft_ports`,
			`iifname . ip6 saddr @pods6 goto weft_ports`,
		)...)},
		{Name: "weft_ports", Rules: []string{
			`tcp dport @ports counter drop comment "weft-port"`,
			`udp dport @ports counter drop comment "weft-port"`,
		}},
		{Name: "peer_to_host", Rules: peerToHost},
		{Name: "through", Hook: host.Forward, Rules: append([]string{
			`oifname "weft-*" goto fit`,
			`iifname "weft-*" goto fit`,
			`iifname "wf*" goto pod_to_world`,
		}, guests(
			`iifname . ip saddr @pods4 goto pod_to_world`,
			`iifname . ip6 saddr @pods6 goto pod_to_world`,
		)...)},
		{Name: "fit", Rules: []string{`tcp flags syn tcp option maxseg size set rt mtu`}},
		{Name: "pod_to_world", Rules: append(append([]string{`oifname "wf*" accept`}, guests(
			`oifname . ip daddr @pods4 accept`,
			`oifname . ip6 daddr @pods6 accept`,
		)...),
			`jump weft_ports`,
			`ip daddr . tcp dport @nodes4 counter drop comment "weft-port"`,
			`ip daddr . udp dport @nodes4 counter drop comment "weft-port"`,
			`ip6 daddr . tcp dport @nodes6 counter drop comment "weft-port"`,
			`ip6 daddr . udp dport @nodes6 counter drop comment "weft-port"`,
		)},
		{Name: "world", Hook: host.Postrouting, Priority: priorityNAT, NAT: true, Rules: []string{
			`oifname "weft-*" return`,
			`oifname "wf*" return`,
			`oifname "lo" return`,
			`ip saddr @pools4 ip daddr != @pools4 ip daddr != @plain4 masquerade fully-random`,
			`ip6 saddr @pools6 ip6 daddr != @pools6 ip6 daddr != @plain6 masquerade fully-random`,
		}},
		{Name: "outgoing", Hook: host.Postrouting, Priority: priorityOut, Rules: slices.Concat([]string{
			`oifname "weft-*" accept`,
			`oifname "wf*" accept`,
			`oifname "lo" accept`,
		}, toPools("daddr", "leak_to_pool"), toPools("saddr", "leak_from_pool"))},
		{Name: "leak_to_pool", Rules: append(guests(
			`oifname . ip daddr @pods4 accept`,
			`oifname . ip6 daddr @pods6 accept`,
		), `counter drop comment "leak"`)},
		{Name: "leak_from_pool", Rules: []string{
			`ip daddr != @plain4 counter drop comment "leak"`,
			`ip6 daddr != @plain6 counter drop comment "leak"`,
		}},
	}
	return host.Ruleset{Sets: sets, Chains: chains}
}

// byFamily writes prefixes sorted and without duplicates, those of full length as addresses.
func byFamily(prefixes []netip.Prefix) (v4, v6 []string) {
	prefixes = slices.Clone(prefixes)
	slices.SortFunc(prefixes, comparePrefix)
	for _, p := range slices.Compact(prefixes) {
		s := p.Masked().String()
		if p.IsSingleIP() {
			s = p.Addr().String()
		}
		if p.Addr().Is4() {
			v4 = append(v4, s)
		} else {
			v6 = append(v6, s)
		}
	}
	return v4, v6
}

func hostPrefixes(addrs []netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addrs {
		if a.IsValid() {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

func sorted(s []string) []string {
	slices.Sort(s)
	return slices.Compact(s)
}
