package runtimes_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weft/test/runtimes"
)

const dockerPool6 = "fd77:1:2::/48"

// container6 is container in a network of IPv6 alone.
func (d *dockerHost) container6(name, network string, args ...string) string {
	d.t.Helper()
	v4 := d.container(name, network, args...)
	if !strings.HasPrefix(v4, "169.254.") {
		d.t.Errorf("%s on %s has %s, want an address that stands in", name, d.Name(), v4)
	}
	return d.address6(name, network)
}

func (d *dockerHost) address6(name, network string) string {
	d.t.Helper()
	a, err := netip.ParseAddr(d.run(dockerCLI, "inspect", "-f", "{{(index .NetworkSettings.Networks \""+network+"\").GlobalIPv6Address}}", name))
	if err != nil || !netip.MustParsePrefix(dockerPool6).Contains(a) {
		d.t.Fatalf("%s on %s has the address %s in %s, %v", name, d.Name(), a, network, err)
	}
	return a.String()
}

// A cluster of IPv6 alone: containers reach each other and the world by IPv6, ports are published by it, and by IPv4, of which
// Docker insists that they have an address, they reach nobody.
func TestDockerWithIPv6Alone(t *testing.T) {
	a, b := dockerHosts(t, "--pool", "none", "--pool6", dockerPool6)
	a.gone, b.gone = a.settled(), b.settled()
	create := []string{dockerCLI, "network", "create", "-d", "weft", "--ipam-driver", "weft"}
	a.fails("Add: --ipv6", append(create, "wrong")...)
	a.fails("Leave out the IPv4 --subnet", append(create, "--ipv6", "--subnet", "10.77.0.0/16", "wrong")...)
	for _, d := range []*dockerHost{a, b} {
		d.network("common", "--ipv6", "--subnet", dockerPool6)
		d.network("shop", "--ipv6", "-o", "network=shop")
	}
	web, client := a.container6("web", "common"), b.container6("client", "common")
	shop := a.container6("shop-a", "shop")
	b.gets("client", "["+web+"]", "hello from web")
	b.run(dockerCLI, "exec", "client", "ping", "-6", "-c", "1", "-W", "5", web)
	b.gets("client", "["+shop+"]", "")
	a.run("ping", "-6", "-c", "1", "-W", "5", client) // machines reach containers, and containers the world
	b.run(dockerCLI, "exec", "client", "ping", "-6", "-c", "1", "-W", "5", "2001:db8:18::1")
	if routes := b.run(dockerCLI, "exec", "client", "ip", "-4", "route"); routes != "" {
		t.Errorf("the client has ways by IPv4: %s", routes)
	}

	chosen := "fd77:1:2:7::abc"
	if got := a.container6("chosen", "common", "--ip6", chosen); got != chosen {
		t.Errorf("--ip6 %s gave %s", chosen, got)
	}
	b.gets("client", "["+chosen+"]", "hello from chosen")
	a.fails("address is taken", dockerCLI, "run", "-d", "--name", "again", "--network", "common", "--ip6", chosen, dockerImage)

	a.container6("port", "common", "-p", "8080:80")
	published := func(want string) error {
		out, err := b.Host().Exec("curl", "-s", "-m", "3", "http://[2001:db8:18::1]:8080/index.html")
		if err != nil || !strings.Contains(out, want) {
			return fmt.Errorf("published port: %q, %w", out, err)
		}
		return nil
	}
	a.must(runtimes.Poll(within(t, patience), func() error { return published("hello from port") }))
	a.fails("is published for", dockerCLI, "run", "-d", "--name", "port2", "--network", "common", "-p", "8080:80", dockerImage)
	a.fails("has no IPv4 address", dockerCLI, "run", "-d", "--name", "port3", "--network", "common", "-p", "198.18.1.1:81:80", dockerImage)

	// Both restart, and all goes on; a container that is started again has its address as before or another one of the pool.
	a.Crash()
	a.again()
	b.gets("client", "["+web+"]", "hello from web")
	a.docker.Kill()
	a.startDocker()
	a.run(dockerCLI, "start", "web")
	b.gets("client", "["+a.address6("web", "common")+"]", "hello from web")

	for _, d := range []*dockerHost{a, b} {
		d.run("sh", "-c", dockerCLI+" rm -f $("+dockerCLI+" ps -aq)")
		d.run(dockerCLI, "network", "rm", "common", "shop")
		err := runtimes.Poll(within(t, patience), func() error {
			if diff := cmp.Diff(d.gone, d.picture()); diff != "" {
				return fmt.Errorf("%s is not as before:\n%s", d.Name(), diff)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}
