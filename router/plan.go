package router

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"weft/mesh/peer"
	"weft/router/host"
)

// keyForward4 and keyForward6 make the machine forward packets.
const (
	keyForward4 = "net/ipv4/ip_forward"
	keyForward6 = "net/ipv6/conf/all/forwarding"
)

// plan is the wanted state of the machine. It is a value: made by a pure function, compared with a snapshot, applied as
// the difference.
type plan struct {
	filter    host.Ruleset
	addresses []host.Address
	borrowed  []host.Address // of the transports' devices, where those exist
	routes    []host.Route   // those of a device that is missing wait
	gates     []host.Gate
	links     []host.Link         // transports' devices that need MTU and up
	sysctls   []host.Sysctl       // written where they exist and differ
	tunnels   map[string][]Tunnel // by transport
	mtu       map[peer.ID]int
}

// id names an attachment.
func (p Pod) id() string { return p.Name + "/" + cmp.Or(p.IfName, defaultIfName) }

const defaultIfName = "eth0"

// link is the device behind which a pod is.
func (p Pod) link() string { return cmp.Or(p.Device, host.VethName(p.id())) }

// makePlan decides. pods are the claims together with what is attached right now; cands and choices say for each peer
// what may carry it and what does; v6 is whether the host speaks IPv6.
func makePlan(in Input, pods []Pod, options []option, cands map[peer.ID][]candidate, choices map[peer.ID]Choice,
	links map[peer.ID]map[string]Link, v6 bool,
) plan {
	p := plan{filter: guard(in, pods), tunnels: make(map[string][]Tunnel), mtu: make(map[peer.ID]int)}
	speaks := func(a netip.Addr) bool { return a.Is4() || v6 }

	for _, pool := range in.Pools {
		if speaks(pool.Addr()) {
			p.routes = append(p.routes, host.Route{Dst: pool.Masked(), Kind: host.Unreachable, Metric: host.UnreachableMetric})
		}
	}
	var src4, src6 netip.Addr
	p.addresses, src4, src6 = hostAddresses(in, v6)
	source := func(a netip.Addr) netip.Addr {
		if a.Is4() {
			return src4
		}
		return src6
	}
	for _, pod := range pods {
		for _, a := range []netip.Addr{pod.V4, pod.V6} {
			if a.IsValid() && speaks(a) {
				p.routes = append(p.routes, host.Route{Dst: netip.PrefixFrom(a, a.BitLen()), Link: pod.link(), Src: source(a)})
			}
		}
	}
	for _, q := range in.Peers {
		for _, c := range cands[q.Info.ID] {
			t := Tunnel{
				Peer: q.Info.ID, Endpoint: c.endpoint, Sources: c.sources,
				MTU: routeMTU(in.UnderlayMTU, q.Info.MTU, links[q.Info.ID][c.Name].MTU, c.Driver),
			}
			for _, b := range q.Blocks {
				if speaks(b.Addr()) {
					t.Blocks = append(t.Blocks, b.Masked())
				}
			}
			slices.SortFunc(t.Blocks, comparePrefix)
			p.tunnels[c.Name] = append(p.tunnels[c.Name], t)
			if choices[q.Info.ID].Transport != c.Name {
				continue
			}
			p.mtu[q.Info.ID] = t.MTU
			var hop NextHop
			if c.NextHop != nil {
				hop = c.NextHop(t)
			}
			for _, b := range t.Blocks {
				via := hop.V6
				if b.Addr().Is4() {
					via = hop.V4
				}
				p.routes = append(p.routes, host.Route{Dst: b, Link: c.Device, Via: via, Src: source(b.Addr()), MTU: t.MTU})
			}
		}
	}
	if !src4.IsValid() {
		p.routes = append(p.routes, testRoutes(in, options, p.tunnels, src6)...)
	}
	p.sysctls = append(p.sysctls, host.Sysctl{Key: keyForward4, Value: "1"})
	if v6 {
		p.sysctls = append(p.sysctls, host.Sysctl{Key: keyForward6, Value: "1"})
	}
	for _, o := range options {
		if o.absent != nil {
			continue
		}
		// Loose: the two directions of a pair change their transport at different times. On a device without an address
		// the kernel takes loose for strict, and what the other side sends by a transport that is new to us would be lost.
		if src4.IsValid() {
			p.borrowed = append(p.borrowed, host.Address{Link: o.Device, Prefix: netip.PrefixFrom(src4, src4.BitLen())})
		}
		p.sysctls = append(p.sysctls, host.Sysctl{Key: "net/ipv4/conf/" + o.Device + "/rp_filter", Value: "2"})
		if v6 {
			conf := "net/ipv6/conf/" + o.Device + "/"
			p.sysctls = append(p.sysctls, host.Sysctl{Key: conf + "accept_ra", Value: "0"},
				host.Sysctl{Key: conf + "addr_gen_mode", Value: "1"})
		}
		p.links = append(p.links, host.Link{Name: o.Device, MTU: PodMTU(in.UnderlayMTU), Up: true})
		if !o.Checks && len(p.tunnels[o.Name]) > 0 {
			p.gates = append(p.gates, gate(in, o.Device, v6))
		}
	}
	p.links = append(p.links, host.Link{Name: "lo", Up: true})
	return p
}

// testRoutes let tunnels be tested where a machine has IPv6 alone: its echoes can be sent into a device only where a route
// leads by it. They stand behind the routes that refuse, so nothing else takes them. Each device has a metric of its own:
// two routes of one prefix and metric are one to the kernel. A device that needs next hops has none for all peers.
func testRoutes(in Input, options []option, tunnels map[string][]Tunnel, src netip.Addr) (routes []host.Route) {
	for i, o := range options {
		if o.absent != nil || o.Checks || o.NextHop != nil || len(tunnels[o.Name]) == 0 || !src.IsValid() {
			continue
		}
		for _, pool := range in.Pools {
			if pool.Addr().Is6() {
				routes = append(routes, host.Route{Dst: pool.Masked(), Link: o.Device, Src: src, Metric: host.UnreachableMetric + 1 + i})
			}
		}
	}
	return routes
}

// hostAddresses are those of the machine itself, and the sources of what it sends to pods.
func hostAddresses(in Input, v6 bool) (all []host.Address, src4, src6 netip.Addr) {
	for _, a := range in.Hosts {
		if a.Is6() && !v6 {
			continue
		}
		if a.Is4() {
			src4 = a
		} else {
			src6 = a
		}
		all = append(all, host.Address{Link: "lo", Prefix: netip.PrefixFrom(a, a.BitLen()), Passive: a.Is6()})
	}
	return all, src4, src6
}

// gate lets one device bring packets to our blocks only, and only when they come from a pool. It is for transports whose
// device cannot check destinations by itself, so that a flushed nftables table opens nothing.
func gate(in Input, device string, v6 bool) host.Gate {
	g := host.Gate{Link: device}
	for _, b := range in.Blocks {
		for _, pool := range in.Pools {
			if w := (host.Passage{From: pool.Masked(), To: b.Masked()}); b.Addr().Is4() == pool.Addr().Is4() &&
				(v6 || b.Addr().Is4()) && !slices.Contains(g.Open, w) {
				g.Open = append(g.Open, w)
			}
		}
	}
	return g
}

// sysctlKeys lists what a snapshot must read for the plan.
func (p plan) sysctlKeys() []string {
	keys := make([]string, len(p.sysctls))
	for i, s := range p.sysctls {
		keys[i] = s.Key
	}
	return keys
}

// refuse is what must be in place before anything else: routes that refuse, and rules. None of it lets a packet pass that
// did not pass before.
func (p plan) refuse(have *host.Snapshot) (changes []host.Change) {
	routes := ourRoutes(have)
	for i, r := range p.routes {
		if r.Kind == host.Unreachable && routes[keyOf(r)] == nil {
			changes = append(changes, host.Change{Route: &p.routes[i]})
		}
	}
	return append(changes, p.shut(have)...)
}

// shut puts gates before devices, those that came since included.
func (p plan) shut(have *host.Snapshot) (changes []host.Change) {
	for i, g := range p.gates {
		if have.Gates[g.Link] != g.String() {
			changes = append(changes, host.Change{Gate: &p.gates[i]})
		}
	}
	return changes
}

// ground comes after the filter: addresses, and the sysctls that make the machine forward.
func (p plan) ground(have *host.Snapshot) (changes []host.Change) {
	for i, l := range p.links {
		if now, ok := have.Link(l.Name); ok && l.Name == "lo" && !now.Up {
			changes = append(changes, host.Change{Link: &p.links[i]})
		}
	}
	for i, a := range p.addresses {
		if !slices.Contains(have.Addresses, a) {
			changes = append(changes, host.Change{Address: &p.addresses[i]})
		}
	}
	for i, a := range p.borrowed {
		if _, ok := have.Link(a.Link); ok && !slices.Contains(have.Addresses, a) {
			changes = append(changes, host.Change{Address: &p.borrowed[i]})
		}
	}
	for i, s := range p.sysctls {
		if now, ok := have.Sysctls[s.Key]; ok && now != s.Value {
			changes = append(changes, host.Change{Sysctl: &p.sysctls[i]})
		}
	}
	return changes
}

// forward is the rest: devices up, routes to pods and peers, and away with what is not wanted any more. Replacing a route
// is one step in the kernel, so a packet always meets the old one or the new one. waiting names the devices that routes
// wait for.
func (p plan) forward(have *host.Snapshot) (changes []host.Change, waiting []string) {
	for i, l := range p.links {
		if now, ok := have.Link(l.Name); ok && (!now.Up || l.MTU != 0 && now.MTU != l.MTU) {
			changes = append(changes, host.Change{Link: &p.links[i]})
		}
	}
	routes := ourRoutes(have)
	wanted := make(map[routeKey]bool, len(p.routes))
	for i, r := range p.routes {
		if r.Kind == host.Unicast {
			if _, ok := have.Link(r.Link); !ok {
				if strings.HasPrefix(r.Link, host.DevicePrefix) && !slices.Contains(waiting, r.Link) {
					waiting = append(waiting, r.Link)
				}
				continue
			}
		}
		key := keyOf(r)
		wanted[key] = true
		r.Ours = true
		if now := routes[key]; now == nil || *now != r {
			changes = append(changes, host.Change{Route: &p.routes[i]})
		}
	}
	for i, r := range have.Routes {
		if r.Ours && !wanted[keyOf(r)] {
			changes = append(changes, host.Change{Op: host.Delete, Route: &have.Routes[i]})
		}
	}
	for i, a := range have.Addresses {
		ours := a.Link == "lo" || strings.HasPrefix(a.Link, host.DevicePrefix)
		if ours && p.inPools(a.Prefix.Addr()) && !slices.Contains(p.addresses, a) && !slices.Contains(p.borrowed, a) {
			changes = append(changes, host.Change{Op: host.Delete, Address: &have.Addresses[i]})
		}
	}
	for _, device := range slices.Sorted(maps.Keys(have.Gates)) {
		if !slices.ContainsFunc(p.gates, func(g host.Gate) bool { return g.Link == device }) {
			changes = append(changes, host.Change{Op: host.Delete, Gate: &host.Gate{Link: device}})
		}
	}
	return changes, waiting
}

func (p plan) inPools(a netip.Addr) bool {
	return slices.ContainsFunc(p.routes, func(r host.Route) bool { return r.Kind == host.Unreachable && r.Dst.Contains(a) })
}

// routeKey is what makes two routes of one table the same to the kernel.
type routeKey struct {
	dst    netip.Prefix
	metric int
}

func keyOf(r host.Route) routeKey { return routeKey{r.Dst, r.Metric} }

func ourRoutes(have *host.Snapshot) map[routeKey]*host.Route {
	out := make(map[routeKey]*host.Route)
	for i, r := range have.Routes {
		if r.Ours {
			out[keyOf(r)] = &have.Routes[i]
		}
	}
	return out
}
