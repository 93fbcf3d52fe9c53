package docker_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"weft/plugin/docker"
)

// alone6 is dockerd on a machine of a cluster of IPv6 alone.
func alone6(t *testing.T) *daemon {
	d := start(t)
	d.pools = []netip.Prefix{netip.MustParsePrefix("fd00:77::/48")}
	d.next = netip.MustParseAddr("fd00:77:0:1::2")
	return d
}

func networkBody6(id, options string) string {
	return strings.Replace(networkBody(id, options), `"IPv4Data"`, `"IPv6Data":[{"AddressSpace":"weft","Pool":"::/0"}],"IPv4Data"`, 1)
}

// endpoint6 is `docker run` up to Join, as dockerd before 28 does it: with both families.
func (d *daemon) endpoint6(endpoint, mac, options string) (v4, v6 string) {
	d.Helper()
	request := `{"PoolID":%q,"Options":{"com.docker.network.endpoint.macaddress":%q}}`
	v4, _ = d.ask("IpamDriver.RequestAddress", request, "weft4", mac)["Address"].(string)
	v6, _ = d.ask("IpamDriver.RequestAddress", request, "weft6", mac)["Address"].(string)
	d.ask("NetworkDriver.CreateEndpoint",
		`{"NetworkID":"n1","EndpointID":%q,"Interface":{"Address":%q,"AddressIPv6":%q,"MacAddress":%q},"Options":{%s}}`, endpoint, v4, v6, mac, options)
	return v4, v6
}

func TestAContainerOfIPv6Alone(t *testing.T) {
	d := alone6(t)
	for _, v6 := range []bool{false, true} {
		d.ask("IpamDriver.RequestPool", `{"AddressSpace":"weft","Pool":"","V6":%v}`, v6)
	}
	d.ask("NetworkDriver.CreateNetwork", "%s", networkBody6("n1", named("shop")))
	v4, v6 := d.endpoint6("e1", mac1, `"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":8080},{"Proto":6,"Port":81,"HostPort":81,"HostIP":"0.0.0.0"}]`)
	if v6 != "fd00:77:0:1::2/128" || !strings.HasPrefix(v4, "169.254.") || strings.HasPrefix(v4, "169.254.1.") {
		t.Errorf("addresses %s and %s", v4, v6)
	}
	at := netip.MustParsePrefix(v6).Addr()
	if len(d.arranged.Ports) > 0 {
		t.Errorf("published before it is joined: %+v", d.arranged.Ports)
	}
	joined := d.ask("NetworkDriver.Join", `{"NetworkID":"n1","EndpointID":"e1","SandboxKey":"/s"}`)
	if joined["GatewayIPv6"] != "fe80::1" || joined["Gateway"] != "" && joined["Gateway"] != nil || len(joined["StaticRoutes"].([]any)) != 2 {
		t.Errorf("join answers %v", joined)
	}
	want := docker.Arrangement{
		Networks: []docker.Network{{Name: "shop", Members: []netip.Addr{at}}},
		Siblings: map[netip.Addr][]netip.Addr{},
		Ports:    []docker.Port{{HostPort: 8080, Container: at, Port: 80}},
	}
	if !reflect.DeepEqual(d.arranged, want) {
		t.Errorf("arranged\n%+v, want\n%+v", d.arranged, want)
	}

	// Both ask again after their restarts, dockerd with the MAC or without.
	d.restart()
	for _, a := range []struct{ pool, address string }{{"weft4", v4}, {"weft6", v6}} {
		a.address, _, _ = strings.Cut(a.address, "/")
		for _, with := range []string{"", fmt.Sprintf(`,"Options":{"com.docker.network.endpoint.macaddress":%q}`, mac1)} {
			got := d.ask("IpamDriver.RequestAddress", `{"PoolID":%q,"Address":%q%s}`, a.pool, a.address, strings.ReplaceAll(with, "%", "%%"))
			if address, _ := got["Address"].(string); !strings.HasPrefix(address, a.address+"/") {
				t.Errorf("%s became %s", a.address, address)
			}
		}
	}

	// A second interface of the same container takes its ports over, another container may not.
	d.endpoint6("e2", mac2, `"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":8080}]`)
	d.refused("is published for fd00:77:0:1::2 already", "NetworkDriver.Join", `{"NetworkID":"n1","EndpointID":"e2","SandboxKey":"/other"}`)
	d.ask("NetworkDriver.Join", `{"NetworkID":"n1","EndpointID":"e2","SandboxKey":"/s"}`)
	if got := d.arranged.Ports; len(got) != 1 || got[0].Container == at {
		t.Errorf("ports are %+v", got)
	}

	// What stood in gives nothing back, what it stood beside does.
	d.ask("IpamDriver.ReleaseAddress", `{"PoolID":"weft4","Address":%q}`, strings.TrimSuffix(v4, "/32"))
	if len(d.leases) != 2 {
		t.Errorf("leases are %v", d.leases)
	}
	d.ask("IpamDriver.ReleaseAddress", `{"PoolID":"weft6","Address":%q}`, at)
	if len(d.leases) != 1 {
		t.Errorf("leases are %v", d.leases)
	}
}

// Docker of version 28 makes networks of IPv6 alone itself.
func TestANetworkOfIPv6Alone(t *testing.T) {
	d := alone6(t)
	d.ask("NetworkDriver.CreateNetwork", `{"NetworkID":"n1","IPv6Data":[{"AddressSpace":"weft","Pool":"::/0"}]}`)
	v6 := d.ask("IpamDriver.RequestAddress", `{"PoolID":"weft6","Address":"fd00:77:0:1::abc","Options":{"com.docker.network.endpoint.macaddress":%q}}`, mac1)
	if v6["Address"] != "fd00:77:0:1::abc/128" {
		t.Errorf("the address is %v", v6)
	}
	d.ask("NetworkDriver.CreateEndpoint", `{"NetworkID":"n1","EndpointID":"e1","Interface":{"AddressIPv6":%q,"MacAddress":%q}}`, v6["Address"], mac1)
	d.ask("NetworkDriver.Join", `{"NetworkID":"n1","EndpointID":"e1","SandboxKey":"/s"}`)
	d.ask("NetworkDriver.ProgramExternalConnectivity", `{"EndpointID":"e1","Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":80}]}}`)
	if got := d.arranged.Ports; len(got) != 1 || got[0].Container != netip.MustParseAddr("fd00:77:0:1::abc") {
		t.Errorf("ports are %+v", got)
	}
}

func TestRefusalsWithIPv6Alone(t *testing.T) {
	d := alone6(t)
	for _, c := range []struct{ words, call, body string }{
		{"Add: --ipv6", "NetworkDriver.CreateNetwork", networkBody("n1", "")},
		{"Leave out the IPv4 --subnet", "IpamDriver.RequestPool", `{"Pool":"10.5.0.0/16"}`},
		{"Try: --subnet fd00:77::/48", "IpamDriver.RequestPool", `{"Pool":"fd00:88::/48","V6":true}`},
		{"Choose one by --ip6", "IpamDriver.RequestAddress", `{"PoolID":"weft4","Address":"10.5.0.1","Options":{"com.docker.network.endpoint.macaddress":"` + mac1 + `"}}`},
	} {
		d.refused(c.words, c.call, "%s", c.body)
	}
	d.ask("NetworkDriver.CreateNetwork", "%s", networkBody6("n1", ""))
	d.endpoint6("e1", mac1, "")
	d.ask("NetworkDriver.Join", `{"NetworkID":"n1","EndpointID":"e1","SandboxKey":"/s"}`)
	d.refused("the container has no IPv4 address", "NetworkDriver.ProgramExternalConnectivity",
		`{"EndpointID":"e1","Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":80,"HostIP":"192.0.2.7"}]}}`)
	d.refused("belongs to another container", "IpamDriver.RequestAddress", `{"PoolID":"weft6","Options":{"com.docker.network.endpoint.macaddress":%q}}`, mac1)
}
