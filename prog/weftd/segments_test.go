package weftd

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"weft/mesh/peer"
	"weft/plugin/docker"
)

func addrs(texts ...string) (all []netip.Addr) {
	for _, s := range texts {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func TestAReportIsReadAsItWasWritten(t *testing.T) {
	want := segmentReport{boot: 7, seq: 3, networks: map[string][]netip.Addr{
		"shop": addrs("10.32.0.2", "fd00::a20:2"), "vault": nil,
	}}
	got, err := parseSegments(want.append(nil))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	others := map[peer.ID]segmentReport{{1}: want, {2}: {networks: map[string][]netip.Addr{}}}
	back, err := parseSegmentPeers(appendSegmentPeers(nil, others))
	if err != nil || !reflect.DeepEqual(back, others) {
		t.Errorf("got %+v, %v", back, err)
	}
}

func TestAReportHasBounds(t *testing.T) {
	many := make([]netip.Addr, maxSegmented/2+1)
	for i := range many {
		many[i] = netip.AddrFrom4([4]byte{10, 32, byte(i >> 8), byte(i)})
	}
	tooMany := map[string][]netip.Addr{}
	for i := range maxSegments + 1 {
		tooMany[strings.Repeat("n", i%60+1)+string(rune('a'+i%26))+string(rune('a'+i/26))] = nil
	}
	for what, networks := range map[string]map[string][]netip.Addr{
		"too many addresses": {"a": many, "b": many}, "too many networks": tooMany,
		"no name": {"": nil}, "a long name": {strings.Repeat("x", maxSegmentName+1): nil},
		"mapped": {"a": addrs("::ffff:10.32.0.2")},
	} {
		if _, err := parseSegments(segmentReport{networks: networks}.append(nil)); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
}

func FuzzParseSegments(f *testing.F) {
	f.Add(segmentReport{boot: 7, seq: 3, networks: map[string][]netip.Addr{"shop": addrs("10.32.0.2", "fd00::a20:2"), "vault": nil}}.append(nil))
	f.Add([]byte{0x10})
	f.Add([]byte{0x20, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseSegments(b)
		if err != nil {
			return
		}
		again, err := parseSegments(r.append(nil))
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Errorf("%+v became %+v, %v", r, again, err)
		}
	})
}

func TestNobodyIsFilteredWithoutANetworkWithAName(t *testing.T) {
	rs := segmentFilter(docker.Arrangement{}, nil, addrs("10.32.0.1"), nil)
	if len(rs.Sets)+len(rs.Chains) > 0 {
		t.Errorf("there is %s", rs)
	}
}

func TestTheFilterOfNetworks(t *testing.T) {
	own := docker.Arrangement{
		Networks: []docker.Network{{Name: "shop", Members: addrs("10.32.0.2", "fd00::a20:2")}, {Name: "vault"}},
		Internal: addrs("10.32.0.3"),
		Ports: []docker.Port{
			{HostPort: 8080, Container: addrs("10.32.0.2")[0], Port: 80},
			{UDP: true, Host: addrs("192.0.2.7")[0], HostPort: 53, Container: addrs("10.32.0.2")[0], Port: 53},
			{HostPort: 8080, Container: addrs("fd00::a20:2")[0], Port: 80},
		},
	}
	members := map[string][]netip.Addr{"shop": addrs("10.32.0.2", "fd00::a20:2", "10.40.0.2"), "vault": nil}
	text := segmentFilter(own, members, addrs("10.40.0.1"), []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12")}).String()
	shop := "docker.net_" + segmentID("shop") + "_4"
	for _, want := range []string{
		"set " + shop + " {\n\t\ttype ipv4_addr\n\t\telements = { 10.32.0.2, 10.40.0.2 }",
		"set docker.apart4 {\n\t\ttype ipv4_addr\n\t\telements = { 10.32.0.2 }", // what others have is theirs to check
		"set docker.apart6 {\n\t\ttype ipv6_addr\n\t\telements = { fd00::a20:2 }",
		"ip saddr @" + shop + " ip daddr @" + shop + " accept",
		"ip saddr @docker.internal4 ip daddr != @docker.pools4 counter drop",
		"fib daddr type local tcp dport 8080 dnat ip to 10.32.0.2:80",
		"ip daddr 192.0.2.7 udp dport 53 dnat ip to 10.32.0.2:53",
		"fib daddr type local tcp dport 8080 dnat ip6 to [fd00::a20:2]:80",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
	// Whoever is in no network comes after whoever is in one, and before the end.
	accept, drop := strings.Index(text, "@"+shop+" accept"), strings.Index(text, "ip saddr @docker.apart4 ip daddr @docker.pools4 counter drop")
	if accept < 0 || drop < accept {
		t.Errorf("accept at %d, drop at %d", accept, drop)
	}
}
