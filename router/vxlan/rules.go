package vxlan

import (
	"slices"
	"strconv"

	"weft/router"
	"weft/router/host"
)

const (
	// priorityIn is before fragments are put together.
	priorityIn = -450
	// priorityAdmit is after the router's own chain, which refuses pods.
	priorityAdmit = 10
)

// rules hold both checks. Underlay addresses beside the endpoint are admitted, because the kernel of a peer with several
// chooses one by itself.
func (t *transport) rules(want []router.Tunnel) host.Ruleset {
	var from, src4, src6 []string
	for _, w := range want {
		for _, a := range append(slices.Clone(w.Sources), w.Endpoint.Addr()) {
			if a = a.Unmap(); t.fits(a) && !slices.Contains(from, a.String()) {
				from = append(from, a.String())
			}
		}
		mac := MAC(w.Peer).String()
		for _, b := range w.Blocks {
			if b.Addr().Is4() {
				src4 = append(src4, mac+" . "+b.String())
			} else {
				src6 = append(src6, mac+" . "+b.String())
			}
		}
	}
	family, kind := "ip", "ipv4_addr"
	if t.six {
		family, kind = "ip6", "ipv6_addr"
	}
	name := func(s string) string { return t.owner + "." + s }
	return host.Ruleset{
		Owner: t.owner,
		Sets: []host.FilterSet{
			{Name: name("from"), Type: kind, Elements: from},
			{Name: name("src4"), Type: "ether_addr . ipv4_addr", Interval: true, Elements: src4},
			{Name: name("src6"), Type: "ether_addr . ipv6_addr", Interval: true, Elements: src6},
		},
		Chains: []host.Chain{
			{Name: name("admit"), Hook: host.Input, Priority: priorityAdmit, Rules: []string{
				`udp dport ` + strconv.Itoa(Port) + ` ` + family + ` saddr != @` + name("from") + ` counter drop comment "vxlan-stranger"`,
			}},
			{Name: name("source"), Hook: host.Prerouting, Priority: priorityIn, Rules: []string{
				`iifname "` + t.device + `" goto ` + name("check"),
			}},
			{Name: name("check"), Rules: []string{
				`ether saddr . ip saddr @` + name("src4") + ` accept`,
				`ether saddr . ip6 saddr @` + name("src6") + ` accept`,
				`counter drop comment "vxlan-source"`,
			}},
		},
	}
}
