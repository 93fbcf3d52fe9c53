package router

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"weft/mesh/peer"
	"weft/router/host"
)

var update = flag.Bool("update", false, "write the golden files anew")

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func endpoints(s ...string) (out []netip.AddrPort) {
	for _, a := range s {
		out = append(out, netip.MustParseAddrPort(a))
	}
	return out
}

var (
	plainDriver  = Driver{Name: "vxlan", Device: "weft-vx", Overhead4: 50, Overhead6: 70, V4Only: true}
	sealedDriver = Driver{Name: "sleeve", Device: "weft-sl", Overhead4: 60, Overhead6: 80, Sealed: true, Checks: true}
)

func exampleInput() Input {
	return Input{
		Self: peer.ID{1}, Pools: prefixes("10.32.0.0/12", "fd77::/96"), Blocks: prefixes("10.32.0.0/22", "fd77::a20:0/118"),
		Hosts: addrs("10.32.0.1", "fd77::a20:1"), Underlay: addrs("192.0.2.1", "2001:db8::1"), UnderlayMTU: 1500,
		Pods:         []Pod{{Name: "web", V4: netip.MustParseAddr("10.32.0.2"), V6: netip.MustParseAddr("fd77::a20:2")}},
		NoMasquerade: prefixes("172.16.0.0/12"),
		Peers: []Peer{
			{Blocks: prefixes("10.32.4.0/22", "fd77::a20:400/118"), Info: peer.Info{
				ID: peer.ID{2}, Known: true, MTU: 1400,
				Transports: []string{"sleeve"}, Endpoints: endpoints("192.0.2.2:6783", "[2001:db8::2]:6783"),
			}},
			{Blocks: prefixes("10.32.8.0/22"), Info: peer.Info{
				ID: peer.ID{3}, Known: true, Transports: []string{"sleeve"},
				Endpoints: endpoints("198.51.100.3:40001"),
			}},
		},
	}
}

func TestGuardIsAsWritten(t *testing.T) {
	for name, change := range map[string]func(*Input){
		"guard":             func(*Input) {},
		"guard-host-access": func(in *Input) { in.HostAccessAll = true; in.Ports = []uint16{7000, 6783} },
	} {
		in := exampleInput()
		change(&in)
		golden(t, name, guard(in, in.Pods).String())
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (go test -update writes it anew):\n%s", path, diff)
	}
}

// The guard drops in some chains; that each drop is counted under a name is what status and metrics build on.
func TestEveryDropIsCountedButNeighbourDiscovery(t *testing.T) {
	for _, c := range guard(exampleInput(), nil).Chains {
		for _, rule := range c.Rules {
			if strings.Contains(rule, "drop") && !strings.Contains(rule, "ipv6-icmp") &&
				(!strings.Contains(rule, "counter") || !strings.Contains(rule, "comment")) {
				t.Errorf("%s: %s", c.Name, rule)
			}
		}
	}
}

func TestMTU(t *testing.T) {
	for _, c := range []struct {
		name              string
		own, peer, probed int
		driver            Driver
		pod, route        int
	}{
		{"ordinary", 1500, 1500, 0, sealedDriver, 1420, 1420},
		{"the same by every ordinary transport", 1500, 1500, 0, plainDriver, 1420, 1420},
		{"unknown", 0, 0, 0, sealedDriver, 1420, 1420},
		{"peer unknown", 9000, 0, 0, sealedDriver, 8920, 8920},
		{"jumbo", 9000, 9000, 0, sealedDriver, 8920, 8920},
		{"peer smaller", 9000, 1500, 0, sealedDriver, 8920, 1420},
		{"cloud", 1460, 1500, 0, sealedDriver, 1380, 1380},
		{"path smaller", 1500, 1500, 1340, sealedDriver, 1420, 1340},
		{"probe never raises", 1500, 1500, 9000, sealedDriver, 1420, 1420},
		{"never below IPv6's least", 1300, 1200, 576, sealedDriver, 1280, 1280},
		{"a heavier transport", 1500, 1500, 0, Driver{Overhead4: 88, Overhead6: 108}, 1420, 1392},
	} {
		if got := PodMTU(c.own); got != c.pod {
			t.Errorf("%s: pod mtu %d, want %d", c.name, got, c.pod)
		}
		if got := routeMTU(c.own, c.peer, c.probed, c.driver); got != c.route {
			t.Errorf("%s: route mtu %d, want %d", c.name, got, c.route)
		}
	}
}

func TestCandidates(t *testing.T) {
	both := []option{{Driver: plainDriver}, {Driver: sealedDriver}}
	self := node{underlay: addrs("192.0.2.1", "10.1.0.1"), trusted: prefixes("10.1.0.0/16")}
	known := peer.Info{
		ID: peer.ID{2}, State: peer.Alive, Known: true, Transports: []string{"vxlan", "sleeve"},
		Endpoints: endpoints("198.51.100.2:6783", "10.1.0.2:6783"), Trusted: prefixes("10.1.0.0/16"),
	}
	with := func(change func(*peer.Info)) Peer {
		p := known
		change(&p)
		return Peer{Info: p}
	}
	for _, c := range []struct {
		name    string
		self    node
		options []option
		peer    Peer
		want    string // candidates
		not     string // part of the first rejection
	}{
		{"both sides trust", self, both, with(func(*peer.Info) {}), "vxlan 10.1.0.2:6783, sleeve 198.51.100.2:6783", ""},
		{"we do not trust", node{underlay: self.underlay}, both, with(func(*peer.Info) {}), "sleeve 198.51.100.2:6783", "not set here"},
		{"they do not trust", self, both, with(func(p *peer.Info) { p.Trusted = nil }), "sleeve 198.51.100.2:6783", "not set there"},
		{
			"they trust another subnet", self, both, with(func(p *peer.Info) { p.Trusted = prefixes("10.2.0.0/16") }),
			"sleeve 198.51.100.2:6783", "do not hold an address of each",
		},
		{
			"their address is elsewhere", self, both, with(func(p *peer.Info) { p.Endpoints = endpoints("198.51.100.2:6783") }),
			"sleeve 198.51.100.2:6783", "do not hold an address of each",
		},
		{
			"our address is elsewhere",
			node{addrs("192.0.2.1"), self.trusted},
			both, with(func(*peer.Info) {}),
			"sleeve 198.51.100.2:6783", "do not hold an address of each",
		},
		{
			"IPv6 only",
			node{addrs("fd01::1"), prefixes("fd01::/64")},
			both,
			with(func(p *peer.Info) { p.Endpoints, p.Trusted = endpoints("[fd01::2]:6783"), prefixes("fd01::/64") }),
			"sleeve [fd01::2]:6783", "do not hold an address of each",
		},
		{"not offered", self, both, with(func(p *peer.Info) { p.Transports = []string{"sleeve"} }), "sleeve 198.51.100.2:6783", "does not offer"},
		{
			"not available", self,
			[]option{{plainDriver, errors.New("no module")}, both[1]},
			with(func(*peer.Info) {}),
			"sleeve 198.51.100.2:6783", "no module",
		},
		{"unknown", self, both, with(func(p *peer.Info) { p.Known = false }), "", "record"},
		{"removed", self, both, with(func(p *peer.Info) { p.State = peer.Removed }), "", "removed"},
	} {
		in, out := candidates(c.self, c.options, c.peer)
		var got []string
		for _, x := range in {
			got = append(got, x.Name+" "+x.endpoint.String())
		}
		if s := strings.Join(got, ", "); s != c.want {
			t.Errorf("%s: %q, want %q", c.name, s, c.want)
		}
		if c.not != "" && (len(out) == 0 || !strings.Contains(out[0].Reason, c.not)) {
			t.Errorf("%s: rejected %v, want ... %s ...", c.name, out, c.not)
		}
	}
}

func TestChoiceOverTime(t *testing.T) {
	cands := []candidate{{option: option{Driver: Driver{Name: "fast", Sealed: true}}}, {option: option{Driver: Driver{Name: "slow", Sealed: true}}}}
	start := time.Unix(1000, 0)
	type step struct {
		at    time.Duration
		up    string // which answer
		can   string // which may be used; empty: both
		want  string
		holds time.Duration
	}
	for name, steps := range map[string][]step{
		"the best is tried before any answers":   {{0, "", "", "fast", 0}},
		"one that answers beats one that is new": {{0, "slow", "", "slow", 0}},
		"one that is down is left at once": {
			{0, "fast slow", "", "fast", 0},
			{time.Second, "slow", "", "slow", 10 * time.Second},
			{2 * time.Second, "fast slow", "", "slow", 10 * time.Second},
		},
		"one that never answered is left for the first that does, and taken as soon as it does, too": {
			{0, "", "", "fast", 0},
			{300 * time.Millisecond, "slow", "", "slow", 0},
			{800 * time.Millisecond, "fast slow", "", "fast", 0},
			{900 * time.Millisecond, "slow", "", "slow", 10 * time.Second},
			{2 * time.Second, "fast slow", "", "slow", 10 * time.Second},
		},
		"one that never answered since keeps the hold of a failure": {
			{0, "fast slow", "", "fast", 0},
			{time.Second, "slow", "", "slow", 10 * time.Second},
			{2 * time.Second, "", "fast", "fast", 20 * time.Second},
			{3 * time.Second, "slow", "", "slow", 20 * time.Second},
			{22 * time.Second, "fast slow", "", "slow", 20 * time.Second},
			{23 * time.Second, "fast slow", "", "fast", 40 * time.Second},
		},
		"silence of all changes nothing": {{0, "fast", "", "fast", 0}, {time.Minute, "", "", "fast", 0}},
		"after a failure up only after the hold, which doubles": {
			{0, "fast slow", "", "fast", 0},
			{time.Second, "slow", "", "slow", 10 * time.Second},
			{10 * time.Second, "fast slow", "", "slow", 10 * time.Second},
			{11 * time.Second, "fast slow", "", "fast", 20 * time.Second},
			{12 * time.Second, "slow", "", "slow", 40 * time.Second},
			{51 * time.Second, "fast slow", "", "slow", 40 * time.Second},
			{52 * time.Second, "fast slow", "", "fast", 80 * time.Second},
		},
		"calm makes it start anew": {
			{0, "fast", "", "fast", 0},
			{11 * time.Minute, "fast slow", "", "fast", 0},
			{12 * time.Minute, "slow", "", "slow", 10 * time.Second},
		},
		"what may not be used is left at once": {{0, "fast slow", "", "fast", 0}, {time.Millisecond, "fast slow", "slow", "slow", 10 * time.Second}},
	} {
		var c Choice
		for i, s := range steps {
			var may []candidate
			for _, x := range cands {
				if s.can == "" || s.can == x.Name {
					may = append(may, x)
				}
			}
			links := make(map[string]Link)
			for n := range strings.FieldsSeq(s.up) {
				links[n] = Link{Up: true}
			}
			c = choose(may, nil, links, c, start.Add(s.at))
			if c.Transport != s.want || c.hold != s.holds || c.Reason == "" {
				t.Errorf("%s: step %d: %s, hold %s (%s), want %s, %s", name, i, c.Transport, c.hold, c.Reason, s.want, s.holds)
			}
		}
	}
	none := choose(nil, []Rejection{{"fast", "broken"}}, nil, Choice{}, start)
	if none.Transport != "" || !strings.Contains(none.Reason, "broken") {
		t.Errorf("nothing to choose from: %+v", none)
	}
}

// No sequence of events may ever choose what may not be used, nor nothing when something may.
func TestChoiceIsAlwaysACandidate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now, c := time.Unix(0, 0), Choice{}
		for range 20 {
			now = now.Add(time.Duration(rapid.IntRange(0, 30000).Draw(t, "ms")) * time.Millisecond)
			var cands []candidate
			links := make(map[string]Link)
			for _, n := range []string{"a", "b", "c"} {
				if rapid.Bool().Draw(t, n) {
					cands = append(cands, candidate{option: option{Driver: Driver{Name: n, Sealed: true}}})
				}
				links[n] = Link{Up: rapid.Bool().Draw(t, n+" up")}
			}
			was := c
			c = choose(cands, nil, links, c, now)
			if ok := slices.ContainsFunc(cands, func(x candidate) bool { return x.Name == c.Transport }); ok != (len(cands) > 0) {
				t.Fatalf("chose %q among %v", c.Transport, cands)
			}
			if was.Transport != c.Transport && c.Since != now {
				t.Fatalf("changed at %s, says %s", now, c.Since)
			}
			if c.hold > holdMax {
				t.Fatalf("hold %s", c.hold)
			}
		}
	})
}

func planOf(in Input, options []option, v6 bool) plan {
	cands, choices := make(map[peer.ID][]candidate), make(map[peer.ID]Choice)
	for _, p := range in.Peers {
		c, out := candidates(node{in.Underlay, in.Trusted}, options, p)
		cands[p.Info.ID], choices[p.Info.ID] = c, choose(c, out, nil, Choice{}, time.Unix(0, 0))
	}
	return makePlan(in, in.Pods, options, cands, choices, nil, v6)
}

func (p plan) String() string {
	var b strings.Builder
	for _, a := range p.addresses {
		fmt.Fprintf(&b, "address %s dev %s passive %t\n", a.Prefix, a.Link, a.Passive)
	}
	for _, r := range p.routes {
		fmt.Fprintln(&b, "route", r)
	}
	for _, g := range p.gates {
		fmt.Fprintln(&b, "gate", g)
	}
	for _, l := range p.links {
		fmt.Fprintf(&b, "link %s mtu %d up %t\n", l.Name, l.MTU, l.Up)
	}
	for _, s := range p.sysctls {
		fmt.Fprintln(&b, "sysctl", s.Key, s.Value)
	}
	for _, name := range []string{"vxlan", "sleeve"} {
		for _, t := range p.tunnels[name] {
			fmt.Fprintln(&b, "tunnel", name, t.Peer.Short(), t.Endpoint, t.Sources, t.Blocks, t.MTU)
		}
	}
	return b.String()
}

func TestPlans(t *testing.T) {
	sealed := []option{{Driver: plainDriver}, {Driver: sealedDriver}}
	golden(t, "plan", planOf(exampleInput(), sealed, true).String())
	golden(t, "plan-v4", planOf(exampleInput(), sealed, false).String())

	in := exampleInput()
	in.Trusted = prefixes("192.0.2.0/24")
	in.Peers[0].Info.Trusted, in.Peers[0].Info.Transports = prefixes("192.0.2.0/24"), []string{"vxlan", "sleeve"}
	d := plainDriver
	d.NextHop = func(t Tunnel) NextHop { return NextHop{V4: t.Blocks[0].Addr(), V6: netip.MustParseAddr("fe80::2")} }
	golden(t, "plan-trusted", planOf(in, []option{{Driver: d}, {Driver: sealedDriver}}, true).String())

	in = exampleInput()
	in.Pools, in.Blocks, in.Hosts, in.Pods = prefixes("fd77:1::/40"), prefixes("fd77:1::/48"), addrs("fd77:1::1"), nil
	in.Peers[0].Blocks, in.Peers[0].Info.Transports = prefixes("fd77:1:8::/48"), []string{"wireguard", "wireguard-user", "sleeve"}
	in.Peers[1].Blocks = prefixes("fd77:1:9::/48")
	kernel, user := sealedDriver, sealedDriver
	kernel.Name, kernel.Device, kernel.Checks = "wireguard", "weft-wg", false
	user.Name, user.Device, user.Checks = "wireguard-user", "weft-wu", false
	own := sealedDriver
	own.Checks = true
	golden(t, "plan-v6", planOf(in, []option{{Driver: kernel}, {Driver: user}, {Driver: own}}, true).String())

	golden(t, "plan-alone", planOf(Input{Pools: prefixes("10.32.0.0/12")}, nil, true).String())
}

// Whatever a machine holds, one pass makes it what the plan says, and a second finds nothing to do.
func TestOnePassIsEnough(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := exampleInput()
		for i := range in.Peers {
			if rapid.Bool().Draw(t, "less") {
				in.Peers[i].Blocks = in.Peers[i].Blocks[:1]
			}
			in.Peers[i].Info.MTU = rapid.SampledFrom([]int{0, 1300, 1400, 9000}).Draw(t, "mtu")
		}
		p := planOf(in, []option{{Driver: plainDriver}, {Driver: sealedDriver}}, rapid.Bool().Draw(t, "v6"))
		have := &host.Snapshot{
			Links: []host.Link{{Name: "lo"}}, Sysctls: map[string]string{keyForward4: "0"},
			Gates: map[string]string{"weft-wu": "weft-wu"},
		}
		if rapid.Bool().Draw(t, "gate") {
			have.Gates["weft-vx"] = "weft-vx from 10.32.0.0/12 to 10.47.0.0/24"
		}
		for _, name := range []string{"weft-sl", "weft-vx", host.VethName("web/eth0")} {
			if rapid.Bool().Draw(t, name) {
				have.Links = append(have.Links, host.Link{Name: name, MTU: 1500, Up: rapid.Bool().Draw(t, "up")})
			}
		}
		for _, r := range p.routes {
			switch rapid.IntRange(0, 3).Draw(t, "present") {
			case 0:
				r.Ours = true
				have.Routes = append(have.Routes, r)
			case 1:
				r.Ours, r.MTU, r.Link = true, 1234, "weft-vx"
				have.Routes = append(have.Routes, r)
			}
		}
		have.Routes = append(have.Routes, host.Route{Dst: netip.MustParsePrefix("10.47.0.0/24"), Link: "weft-sl", Ours: true},
			host.Route{Dst: netip.MustParsePrefix("192.0.2.0/24"), Link: "eth0"})
		have.Addresses = append(have.Addresses, host.Address{Link: "lo", Prefix: netip.MustParsePrefix("10.32.0.77/32")})

		for _, c := range slices.Concat(p.refuse(have), p.ground(have)) {
			apply(have, c)
		}
		changes, _ := p.forward(have)
		for _, c := range changes {
			apply(have, c)
		}
		again, _ := p.forward(have)
		if rest := slices.Concat(p.refuse(have), p.shut(have), p.ground(have), again); len(rest) > 0 {
			t.Fatalf("still to do: %v", rest)
		}
		if !slices.ContainsFunc(have.Routes, func(r host.Route) bool { return r.Link == "eth0" }) {
			t.Fatal("another's route was deleted")
		}
	})
}

// apply is the kernel in four lines per kind.
func apply(s *host.Snapshot, c host.Change) {
	switch {
	case c.Link != nil:
		for i := range s.Links {
			if s.Links[i].Name == c.Link.Name {
				s.Links[i].Up = c.Link.Up
				if c.Link.MTU != 0 {
					s.Links[i].MTU = c.Link.MTU
				}
			}
		}
	case c.Route != nil:
		r := *c.Route
		r.Ours = true
		s.Routes = slices.DeleteFunc(slices.Clone(s.Routes), func(x host.Route) bool { return keyOf(x) == keyOf(r) })
		if c.Op == host.Set {
			s.Routes = append(s.Routes, r)
		}
	case c.Address != nil:
		a := *c.Address
		s.Addresses = slices.DeleteFunc(slices.Clone(s.Addresses), func(x host.Address) bool {
			return x.Link == a.Link && x.Prefix == a.Prefix
		})
		if c.Op == host.Set {
			s.Addresses = append(s.Addresses, a)
		}
	case c.Gate != nil:
		delete(s.Gates, c.Gate.Link)
		if c.Op == host.Set {
			s.Gates[c.Gate.Link] = c.Gate.String()
		}
	case c.Sysctl != nil:
		s.Sysctls[c.Sysctl.Key] = c.Sysctl.Value
	}
}

func BenchmarkPlanThousandPeers(b *testing.B) {
	in := exampleInput()
	in.Peers = nil
	for i := range 1000 {
		block := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 32 + byte(i>>6), byte(i << 2), 0}), 22)
		in.Peers = append(in.Peers, Peer{Blocks: []netip.Prefix{block}, Info: peer.Info{
			ID: peer.ID{byte(i), byte(i >> 8), 9}, Known: true,
			Transports: []string{"sleeve"}, Endpoints: endpoints("192.0.2.2:6783"),
		}})
	}
	options := []option{{Driver: plainDriver}, {Driver: sealedDriver}}
	b.ReportAllocs()
	for b.Loop() {
		planOf(in, options, true)
	}
}
