package docker_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/plugin/docker"
)

const (
	mac1 = "02:42:00:00:00:01"
	mac2 = "02:42:00:00:00:02"
	mac3 = "02:42:00:00:00:03"
)

func TestAContainerGetsItsAddressACableAndARoute(t *testing.T) {
	d := start(t)
	pool := d.ask("IpamDriver.RequestPool", `{"AddressSpace":"weft","Pool":"","V6":false}`)
	if pool["Pool"] != "0.0.0.0/0" || pool["PoolID"] != "weft4" {
		t.Errorf("pool is %v", pool)
	}
	d.network("n1", "")
	address, joined := d.run("n1", "e1", mac1, "/run/docker/netns/1")
	if address != "10.32.0.2" {
		t.Errorf("address is %s", address)
	}
	want := map[string]any{
		"InterfaceName":         map[string]any{"SrcName": "wf-0001", "DstPrefix": "eth"},
		"Gateway":               "169.254.1.1",
		"StaticRoutes":          []any{map[string]any{"Destination": "169.254.1.1/32", "RouteType": 1.0}},
		"DisableGatewayService": true,
	}
	if !reflect.DeepEqual(joined, want) {
		t.Errorf("join answers\n%v, want\n%v", joined, want)
	}
	if got := d.cables["docker-024200000001"]; got != mac1 {
		t.Errorf("cable has MAC %q", got)
	}
	d.ask("NetworkDriver.Leave", `{"NetworkID":"n1","EndpointID":"e1"}`)
	d.ask("NetworkDriver.DeleteEndpoint", `{"NetworkID":"n1","EndpointID":"e1"}`)
	d.ask("IpamDriver.ReleaseAddress", `{"PoolID":"weft4","Address":"10.32.0.2"}`)
	d.ask("NetworkDriver.DeleteNetwork", `{"NetworkID":"n1"}`)
	d.ask("IpamDriver.ReleaseAddress", `{"PoolID":"weft4","Address":"169.254.1.1"}`)
	if len(d.cables)+len(d.leases) > 0 {
		t.Errorf("left behind: cables %v, leases %v", d.cables, d.leases)
	}
	var book struct{ Networks, Endpoints map[string]any }
	if err := json.Unmarshal(d.shelf.text, &book); err != nil || len(book.Networks)+len(book.Endpoints) > 0 {
		t.Errorf("the book has %s, %v", d.shelf.text, err)
	}
}

func TestBothAddressesBelongTogether(t *testing.T) {
	d := start(t)
	options := `"Options":{"com.docker.network.endpoint.macaddress":"` + mac1 + `"}`
	v4 := d.ask("IpamDriver.RequestAddress", `{"PoolID":"weft4","Address":"10.32.0.77",%s}`, options)
	v6 := d.ask("IpamDriver.RequestAddress", `{"PoolID":"weft6",%s}`, options)
	if v4["Address"] != "10.32.0.77/32" || v6["Address"] != "fd00:77::a20:4d/128" {
		t.Errorf("addresses %v and %v", v4, v6)
	}
	d.refused("is fd00:77::a20:4d", "IpamDriver.RequestAddress", `{"PoolID":"weft6","Address":"fd00:77::1",%s}`, options)
	d.network("n1", "")
	d.ask("NetworkDriver.CreateEndpoint",
		`{"NetworkID":"n1","EndpointID":"e1","Interface":{"Address":"10.32.0.77/32","AddressIPv6":"fd00:77::a20:4d/128","MacAddress":%q}}`, mac1)
	joined := d.ask("NetworkDriver.Join", `{"NetworkID":"n1","EndpointID":"e1","SandboxKey":"/s"}`)
	if joined["GatewayIPv6"] != "fe80::1" {
		t.Errorf("join answers %v", joined)
	}
	const call = "NetworkDriver.ProgramExternalConnectivity"
	d.ask(call, `{"EndpointID":"e1","Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":8080},
		{"Proto":6,"Port":81,"HostPort":81,"HostIP":"0.0.0.0"},{"Proto":6,"Port":81,"HostPort":81,"HostIP":"::"},
		{"Proto":6,"Port":82,"HostPort":82,"HostIP":"2001:db8::7"}]}}`)
	four, six := netip.MustParseAddr("10.32.0.77"), netip.MustParseAddr("fd00:77::a20:4d")
	want := []docker.Port{
		{HostPort: 8080, Container: four, Port: 80},
		{HostPort: 8080, Container: six, Port: 80},
		{HostPort: 81, Container: four, Port: 81},
		{HostPort: 81, Container: six, Port: 81},
		{Host: netip.MustParseAddr("2001:db8::7"), HostPort: 82, Container: six, Port: 82},
	}
	if !reflect.DeepEqual(d.arranged.Ports, want) {
		t.Errorf("ports are %+v", d.arranged.Ports)
	}
	// dockerd gives back each; the first one ends the claim.
	d.ask("IpamDriver.ReleaseAddress", `{"PoolID":"weft4","Address":"10.32.0.77"}`)
	d.ask("IpamDriver.ReleaseAddress", `{"PoolID":"weft6","Address":"fd00:77::a20:4d"}`)
	if len(d.leases)+len(d.cables) > 0 {
		t.Errorf("left behind: %v %v", d.leases, d.cables)
	}
}

func TestWhatDockerAsksTwiceIsAnsweredTwice(t *testing.T) {
	d := start(t)
	for range 2 {
		d.network("n1", named("shop"))
	}
	first, _ := d.run("n1", "e1", mac1, "/s")
	d.restart()
	if got := d.ask("IpamDriver.RequestPool", `{"Pool":"0.0.0.0/0"}`); got["Pool"] != "0.0.0.0/0" {
		t.Errorf("the pool is %v after dockerd's restart", got)
	}
	d.ask("IpamDriver.RequestAddress", `{"PoolID":"weft4","Address":"169.254.1.1","Options":{"RequestAddressType":"com.docker.network.gateway"}}`)
	// After its restart dockerd makes sure of the addresses that it has, with the MAC or without.
	d.ask("IpamDriver.RequestAddress", `{"PoolID":"weft4","Address":%q,"Options":{"com.docker.network.endpoint.macaddress":%q}}`, first, mac1)
	d.ask("IpamDriver.RequestAddress", `{"PoolID":"weft4","Address":%q}`, first)
	for range 2 {
		d.ask("NetworkDriver.Leave", `{"NetworkID":"n1","EndpointID":"e1"}`)
	}
	for range 2 {
		d.ask("NetworkDriver.DeleteEndpoint", `{"NetworkID":"n1","EndpointID":"e1"}`)
		d.ask("IpamDriver.ReleaseAddress", `{"Address":%q}`, first)
	}
	for range 2 {
		d.ask("NetworkDriver.DeleteNetwork", `{"NetworkID":"n1"}`)
	}
	if len(d.leases)+len(d.cables)+len(d.arranged.Networks) > 0 {
		t.Errorf("left behind: %v %v %v", d.leases, d.cables, d.arranged)
	}
}

func TestRefusalsSayWhatToType(t *testing.T) {
	d := start(t)
	d.network("n1", "")
	d.network("n2", named("shop"))
	for _, c := range []struct{ words, call, body string }{
		{"Try: --subnet 10.32.0.0/12", "IpamDriver.RequestPool", `{"Pool":"10.5.0.0/16"}`},
		{"Leave out --ip-range", "IpamDriver.RequestPool", `{"SubPool":"10.32.1.0/24"}`},
		{"Leave out --gateway", "IpamDriver.RequestAddress", `{"Address":"10.32.0.1","Options":{"RequestAddressType":"com.docker.network.gateway"}}`},
		{"Leave out --aux-address", "IpamDriver.RequestAddress", `{"Address":"10.32.0.9"}`},
		{"is no MAC address", "IpamDriver.RequestAddress", `{"Options":{"com.docker.network.endpoint.macaddress":"x"}}`},
		{"is no address", "IpamDriver.RequestAddress", `{"Address":"ten"}`},
		{"Add: --ipam-driver weft", "NetworkDriver.CreateNetwork", `{"NetworkID":"n9","IPv4Data":[{"AddressSpace":"LocalDefault","Pool":"172.18.0.0/16"}]}`},
		{"without IPv4", "NetworkDriver.CreateNetwork", `{"NetworkID":"n9","IPv6Data":[{"AddressSpace":"weft"}]}`},
		{"the cluster's common network already", "NetworkDriver.CreateNetwork", networkBody("n9", "")},
		{"n2 is shop already", "NetworkDriver.CreateNetwork", networkBody("n9", named("shop"))},
		{"want 1 to 63", "NetworkDriver.CreateNetwork", networkBody("n9", named("Shop!"))},
		{"The only one is network=NAME", "NetworkDriver.CreateNetwork", networkBody("n9", `"com.docker.network.generic":{"parent":"eth0"}`)},
		{"was not given out", "NetworkDriver.CreateEndpoint", `{"NetworkID":"n1","EndpointID":"e","Interface":{"Address":"10.32.0.9/32","MacAddress":"` + mac1 + `"}}`},
		{"Start the container again", "NetworkDriver.Join", `{"NetworkID":"n1","EndpointID":"e"}`},
		{"makes no sense", "NetworkDriver.Join", `{"NetworkID":7}`},
		{"has no call", "NetworkDriver.Fly", ``},
	} {
		d.refused(c.words, c.call, "%s", c.body)
	}
	if len(d.leases) > 0 {
		t.Errorf("a refusal kept %v", d.leases)
	}
}

func TestAnUnknownNetworkIsSaidToBeUnknown(t *testing.T) {
	d := start(t)
	got := d.ask("IpamDriver.RequestAddress", `{"Options":{"com.docker.network.endpoint.macaddress":%q}}`, mac1)
	d.refused("weft does not know the network n1", "NetworkDriver.CreateEndpoint",
		`{"NetworkID":"n1","EndpointID":"e","Interface":{"Address":%q,"MacAddress":%q}}`, got["Address"], mac1)
}

func TestTwoContainersNeverShareAMAC(t *testing.T) {
	d := start(t)
	d.network("n1", "")
	d.run("n1", "e1", mac1, "/s")
	d.refused("belongs to another container", "IpamDriver.RequestAddress",
		`{"Options":{"com.docker.network.endpoint.macaddress":%q}}`, mac1)
}

func TestAContainerInTwoNetworksIsAMemberOfBothWithAllItsAddresses(t *testing.T) {
	d := start(t)
	d.network("n1", named("front"))
	d.network("n2", named("back")+`,"com.docker.network.internal":true`)
	a, first := d.run("n1", "e1", mac1, "/s")
	b, second := d.run("n2", "e2", mac2, "/s")
	c, other := d.run("n2", "e3", mac3, "/t")
	if first["Gateway"] != "169.254.1.1" || second["Gateway"] != "169.254.1.2" || other["Gateway"] != "169.254.1.1" {
		t.Errorf("gateways %v, %v, %v", first["Gateway"], second["Gateway"], other["Gateway"])
	}
	at := netip.MustParseAddr
	want := docker.Arrangement{
		Networks: []docker.Network{{Name: "back", Members: []netip.Addr{at(a), at(b), at(c)}}, {Name: "front", Members: []netip.Addr{at(a), at(b)}}},
		Internal: []netip.Addr{at(b), at(c)},
		Siblings: map[netip.Addr][]netip.Addr{at(a): {at(b)}, at(b): {at(a)}},
	}
	if !reflect.DeepEqual(d.arranged, want) {
		t.Errorf("arranged\n%+v, want\n%+v", d.arranged, want)
	}
	// Out of one network it is out of it with all of them.
	d.ask("NetworkDriver.Leave", `{"EndpointID":"e2"}`)
	d.ask("NetworkDriver.DeleteEndpoint", `{"EndpointID":"e2"}`)
	if got := d.arranged.Networks[0].Members; !slices.Equal(got, []netip.Addr{at(c)}) || len(d.arranged.Siblings) > 0 {
		t.Errorf("after leaving: %+v", d.arranged)
	}
}

func TestPublishedPorts(t *testing.T) {
	d := start(t)
	d.network("n1", "")
	a, _ := d.run("n1", "e1", mac1, "/s")
	b, _ := d.run("n1", "e2", mac2, "/t")
	const call = "NetworkDriver.ProgramExternalConnectivity"
	ports := func(endpoint, list string) string {
		return `{"EndpointID":"` + endpoint + `","Options":{"com.docker.network.portmap":[` + list + `]}}`
	}
	d.ask(call, "%s", ports("e1", `{"Proto":6,"Port":80,"HostIP":"","HostPort":8080,"HostPortEnd":8080},{"Proto":17,"Port":53,"HostIP":"192.0.2.7","HostPort":53}`))
	want := []docker.Port{
		{HostPort: 8080, Container: netip.MustParseAddr(a), Port: 80},
		{UDP: true, Host: netip.MustParseAddr("192.0.2.7"), HostPort: 53, Container: netip.MustParseAddr(a), Port: 53},
	}
	if !reflect.DeepEqual(d.arranged.Ports, want) {
		t.Errorf("ports are %+v", d.arranged.Ports)
	}
	for words, list := range map[string]string{
		"published for " + a + " already": `{"Proto":6,"Port":80,"HostPort":8080}`,
		"Name one: -p 8080:80":            `{"Proto":6,"Port":80,"HostPort":0}`,
		"only TCP and UDP":                `{"Proto":132,"Port":80,"HostPort":1}`,
		"there is no port 70000":          `{"Proto":6,"Port":70000,"HostPort":80}`,
		"Make its network with --ipv6":    `{"Proto":6,"Port":80,"HostPort":81,"HostIP":"2001:db8::7"}`,
		"at 127.0.0.1, only at":           `{"Proto":6,"Port":80,"HostPort":81,"HostIP":"127.0.0.1"}`,
	} {
		d.refused(words, call, "%s", ports("e2", list))
	}
	d.ask(call, "%s", ports("e2", `{"Proto":6,"Port":53,"HostPort":53}`)) // the other protocol
	d.ask("NetworkDriver.RevokeExternalConnectivity", `{"EndpointID":"e1"}`)
	if got := d.arranged.Ports; len(got) != 1 || got[0].Container != netip.MustParseAddr(b) {
		t.Errorf("ports are %+v", got)
	}
	d.ask("NetworkDriver.Leave", `{"EndpointID":"e2"}`)
	if len(d.arranged.Ports) > 0 {
		t.Errorf("ports of a container that left: %+v", d.arranged.Ports)
	}
}

func TestABookThatCannotBeWrittenChangesNothing(t *testing.T) {
	d := start(t)
	d.shelf.fail = errors.New("disk full")
	d.refused("disk full", "NetworkDriver.CreateNetwork", "%s", networkBody("n1", ""))
	d.shelf.fail = nil
	d.restart()
	d.network("n2", "") // the common network is still free
}

func TestABookOfAnotherVersionIsRefused(t *testing.T) {
	for _, text := range []string{`{"version":9}`, `{"version":1}`, `nonsense`} {
		if _, err := docker.New(docker.Config{Node: newMachine(), Store: &shelf{text: []byte(text)}}); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}

func TestDockerdIsAnsweredInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := start(t)
		d.hang = make(chan struct{})
		began := time.Now()
		d.refused("no peer can lend", "IpamDriver.RequestAddress", `{"Options":{"com.docker.network.endpoint.macaddress":%q}}`, mac1)
		if took := time.Since(began); took > 11*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestDockerdIsAnsweredInTimeEvenByWhoIgnoresIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := start(t)
		stuck := make(chan struct{})
		d.restartWith(deaf{d.machine, stuck})
		began := time.Now()
		d.refused("did not answer in time", "IpamDriver.RequestPool", `{}`)
		if took := time.Since(began); took > 13*time.Second {
			t.Errorf("it took %v", took)
		}
		close(stuck)
	})
}

func TestWhatDockerForgotIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := start(t)
		d.network("n1", named("shop"))
		d.run("n1", "e1", mac1, "/s")
		d.run("n1", "e2", mac2, "/t")
		d.create("n1", "e3", mac3) // dockerd was killed before Join
		delete(d.cables, "docker-024200000002")
		ctx, stop := context.WithCancel(t.Context())
		var reclaims sync.WaitGroup
		reclaims.Go(func() { d.plugin.Reclaim(ctx) })
		time.Sleep(9 * time.Minute)
		synctest.Wait()
		if all, _ := d.Leases(ctx); len(all) != 3 {
			t.Errorf("after 9 minutes: %v", all)
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		stop()
		reclaims.Wait()
		if _, left := d.leases["docker-024200000001"]; !left || len(d.leases) != 1 {
			t.Errorf("after 12 minutes: %v", d.leases)
		}
		if got := d.arranged.Networks; len(got) != 1 || len(got[0].Members) != 1 {
			t.Errorf("arranged %+v", got)
		}
	})
}

func FuzzCalls(f *testing.F) {
	f.Add("NetworkDriver.CreateNetwork", networkBody("n", named("shop")))
	f.Add("NetworkDriver.CreateEndpoint", `{"NetworkID":"n1","EndpointID":"e","Interface":{"Address":"10.32.0.2/32","MacAddress":"`+mac1+`"}}`)
	f.Add("NetworkDriver.Join", `{"EndpointID":"e1","SandboxKey":"/s"}`)
	f.Add("NetworkDriver.ProgramExternalConnectivity", `{"EndpointID":"e1","Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":80,"HostIP":"::"}]}}`)
	f.Add("IpamDriver.RequestAddress", `{"Address":"10.32.0.2","Options":{"com.docker.network.endpoint.macaddress":"`+mac2+`"}}`)
	f.Add("IpamDriver.RequestPool", `{"Pool":"fd00:77::/96","V6":true}`)
	f.Fuzz(func(t *testing.T, call, body string) {
		if strings.ContainsAny(call, " ?#%\r\n\x7f") || strings.ContainsFunc(call, func(r rune) bool { return r < 33 || r > 126 }) {
			t.Skip("no path")
		}
		d := start(t)
		d.network("n1", "")
		d.run("n1", "e1", mac1, "/s")
		if _, refusal := d.post(call, body); strings.Contains(refusal, "made a mistake") {
			t.Fatal(refusal)
		}
		d.restart() // what it wrote can be read
	})
}
