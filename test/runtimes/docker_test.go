package runtimes_test

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weft/test/netlab"
	"weft/test/runtimes"
)

const (
	dockerCLI   = "/usr/bin/docker"
	dockerPool  = "10.32.0.0/12"
	dockerImage = "pod:1"
	dockerPlug  = "/run/docker/plugins/weft.sock"
)

// dockerHost is a node with dockerd and a weft that serves it.
type dockerHost struct {
	*runtimes.Weft
	t      *testing.T
	docker *runtimes.Cmd
	gone   string // the picture before there was anything
}

// dockerHosts makes two machines in one cluster of these pools, with an image.
func dockerHosts(t *testing.T, pools ...string) (a, b *dockerHost) {
	t.Helper()
	if err := netlab.Supported(); err != nil {
		t.Skip(err)
	}
	need(t, "docker.io docker-compose iptables nftables curl busybox-static", dockerCLI, "/usr/bin/docker-compose", "/usr/sbin/dockerd", "/usr/sbin/iptables", "/usr/sbin/nft", "/usr/bin/curl", "/bin/busybox")
	programs, err := bin.get()
	if err != nil {
		t.Fatal(err)
	}
	image, err := runtimes.Image("docker.io/library/"+dockerImage, []string{"/bin/sleep", "1000000"})
	if err != nil {
		t.Fatal(err)
	}
	lab := netlab.New(t)
	ha, hb := lab.Host("a"), lab.Host("b")
	lab.Link(ha.Port("eth0", "198.18.1.1/24", "2001:db8:18::1/64"), hb.Port("eth0", "198.18.1.2/24", "2001:db8:18::2/64"))
	all := make([]*dockerHost, 2)
	for i, h := range []*netlab.Host{ha, hb} {
		d := &dockerHost{t: t}
		d.Weft, err = runtimes.New(t, h).InstallWeft(programs)
		d.must(err)
		d.must(d.WriteFile("/root/image.tar", image, 0o644))
		t.Cleanup(d.tell)
		all[i] = d
	}
	a, b = all[0], all[1]
	ctx := within(t, startPatience)
	// Once dockerd comes first: then it is the one that turns forwarding on, and drops what is not its own.
	token, err := a.Found(ctx, append([]string{"--docker"}, pools...)...)
	a.must(err)
	var both sync.WaitGroup
	both.Go(func() { a.startDocker() })
	both.Go(func() { b.startDocker("--live-restore") })
	both.Wait()
	if policy := b.run("iptables", "-S", "FORWARD"); !strings.Contains(policy, "-P FORWARD DROP") {
		t.Errorf("dockerd lets everything pass: %s", policy)
	}
	b.must(b.Up("--docker", "--join", token))
	for _, d := range all {
		d.must(d.WaitReady(ctx, 2))
		d.run(dockerCLI, "load", "-i", "/root/image.tar")
	}
	return a, b
}

// tell shows what the daemons said, when the test has failed.
func (d *dockerHost) tell() {
	if !d.t.Failed() {
		return
	}
	for name, c := range map[string]*runtimes.Cmd{"weft": d.Daemon, "dockerd": d.docker} {
		if c != nil {
			d.t.Logf("%s on %s:\n%s", name, d.Name(), netlab.Tail(c.Stderr(), 40))
		}
	}
}

func (d *dockerHost) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// again starts weft on its state and waits until dockerd can be answered.
func (d *dockerHost) again() {
	d.t.Helper()
	d.must(d.Up("--docker"))
	d.must(d.WaitReady(within(d.t, startPatience), 2))
}

func (d *dockerHost) startDocker(args ...string) {
	d.docker = d.Command("/usr/sbin/dockerd", append([]string{"--log-level", "warn"}, args...)...)
	if err := d.docker.Start(); err != nil {
		d.t.Error(err)
		return
	}
	if err := runtimes.Poll(within(d.t, startPatience), func() error { _, err := d.try(dockerCLI, "info"); return err }); err != nil {
		d.t.Error(err)
	}
}

// try runs a command to its end; the error holds its words.
func (d *dockerHost) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(d.t.Context(), startPatience)
	defer cancel()
	out, err := d.Exec(ctx, args[0], args[1:]...)
	return strings.TrimSpace(out), err
}

// run is a try that works.
func (d *dockerHost) run(args ...string) string {
	d.t.Helper()
	out, err := d.try(args...)
	d.must(err)
	return out
}

// fails is a try that does not work, for a reason with these words.
func (d *dockerHost) fails(words string, args ...string) {
	d.t.Helper()
	if out, err := d.try(args...); err == nil || !strings.Contains(err.Error(), words) {
		d.t.Errorf("%s on %s: %q, %v; want an error with %q", strings.Join(args, " "), d.Name(), out, err, words)
	}
}

// container is `docker run -d`; it returns the address.
func (d *dockerHost) container(name, network string, args ...string) string {
	d.t.Helper()
	words := append([]string{dockerCLI, "run", "-d", "--stop-timeout", "1", "--name", name, "--network", network}, args...)
	d.run(append(words, dockerImage, "sh", "-c", "echo hello from "+name+" >/tmp/index.html; exec httpd -f -p 80 -h /tmp")...)
	return d.address(name, network)
}

func (d *dockerHost) address(name, network string) string {
	d.t.Helper()
	a := d.run(dockerCLI, "inspect", "-f", "{{(index .NetworkSettings.Networks \""+network+"\").IPAddress}}", name)
	if a == "" {
		d.t.Fatalf("%s on %s has no address in %s", name, d.Name(), network)
	}
	return a
}

// gets asks a page from a container, with the name that the page must tell; empty: it must not be reached. A page is asked
// for until it comes: a server listens a moment after its container has started.
func (d *dockerHost) gets(from, url, want string) {
	d.t.Helper()
	ask := func(seconds string) (string, error) {
		return d.try(dockerCLI, "exec", from, "timeout", seconds, "wget", "-q", "-O", "-", "http://"+url+"/index.html")
	}
	if want == "" {
		if out, err := ask("2"); err == nil {
			d.t.Errorf("%s on %s reaches %s: %s", from, d.Name(), url, out)
		}
		return
	}
	d.shows(want, func() (string, error) { return ask("10") })
}

// published asks a page at a machine's port, as somebody on host.
func (d *dockerHost) published(host *netlab.Host, url, want string) {
	d.t.Helper()
	d.shows(want, func() (string, error) { return host.Exec("curl", "-s", "-m", "10", "http://"+url+"/index.html") })
}

// shows asks until the answer holds what is wanted.
func (d *dockerHost) shows(want string, ask func() (string, error)) {
	d.t.Helper()
	if err := runtimes.Poll(within(d.t, patience), func() error {
		out, err := ask()
		if err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("got %q, want %q", out, want)
		}
		return err
	}); err != nil {
		d.t.Error(err)
	}
}

// reaches pings from the machine, or from a container of it, until an answer comes.
func (d *dockerHost) reaches(container string, ping ...string) {
	d.t.Helper()
	words := append([]string{"ping", "-c", "1", "-W", "3"}, ping...)
	if container != "" {
		words = append([]string{dockerCLI, "exec", container}, words...)
	}
	d.shows("", func() (string, error) { return d.try(words...) })
}

// lossless waits for the end of a ping.
func (d *dockerHost) lossless(ping *runtimes.Cmd, while string) {
	d.t.Helper()
	if err := ping.Wait(); err != nil {
		d.t.Error(err)
	}
	m := regexp.MustCompile(`(\d+) packets transmitted, (\d+) packets received`).FindStringSubmatch(ping.Stdout())
	if m == nil || m[1] != m[2] {
		d.t.Errorf("packets were lost, %s: %s", while, netlab.Tail(ping.Stdout(), 3))
	}
}

// network is `docker network create` with weft's addresses.
func (d *dockerHost) network(name string, args ...string) {
	d.t.Helper()
	words := append([]string{dockerCLI, "network", "create", "-d", "weft", "--ipam-driver", "weft"}, args...)
	d.run(append(words, name)...)
}

// ofDocker are tables that dockerd writes in another order after each start, and its bridge, which weft may have seen.
var ofDocker = regexp.MustCompile(`(?ms)^table ip (nat|filter) \{.*?^\}\n|172\.17\.0\.1 \. 6783,?\s*`)

// picture is what weft has in the kernel, and what it has given out.
func (d *dockerHost) picture() string {
	d.t.Helper()
	p, err := d.Picture(within(d.t, patience))
	d.must(err)
	return ofDocker.ReplaceAllString(p, "")
}

// settled is the picture when nothing changes any more.
func (d *dockerHost) settled() string {
	d.t.Helper()
	picture, err := rest(d.t, func() (string, error) { return d.picture(), nil })
	d.must(err)
	return picture
}

func TestDockerAcrossTwoMachines(t *testing.T) {
	a, b := dockerHosts(t, "--pool", dockerPool)
	a.gone, b.gone = a.settled(), b.settled()

	step := time.Now()
	mark := func(what string) {
		t.Logf("%-40s %v", what, time.Since(step).Round(time.Millisecond))
		step = time.Now()
	}

	// The common network, by hand-chosen addresses.
	a.fails("Add: --ipam-driver weft", dockerCLI, "network", "create", "-d", "weft", "wrong")
	a.fails("Try: --subnet "+dockerPool, dockerCLI, "network", "create", "-d", "weft", "--ipam-driver", "weft", "--subnet", "10.77.0.0/16", "wrong")
	for _, d := range []*dockerHost{a, b} {
		d.network("common", "--subnet", dockerPool, "--ipv6")
		d.network("shop", "-o", "network=shop")
		d.network("vault", "-o", "network=vault", "--internal")
	}
	a.fails("the cluster's common network already", dockerCLI, "network", "create", "-d", "weft", "--ipam-driver", "weft", "twice")
	mark("networks")

	web := a.container("web", "common")
	client := b.container("client", "common")
	mark("two containers")
	b.reaches("client", web)
	a.reaches("web", client)
	b.gets("client", web, "hello from web")
	web6 := a.run(dockerCLI, "inspect", "-f", "{{.NetworkSettings.Networks.common.GlobalIPv6Address}}", "web")
	b.reaches("client", "-6", web6)
	if got := b.run(dockerCLI, "exec", "client", "cat", "/sys/class/net/eth0/mtu"); got != "1420" {
		t.Errorf("MTU is %s", got)
	}
	// Machines reach containers, and containers the world: here, the other machine's own address.
	a.reaches("", client)
	b.reaches("client", "198.18.1.1")
	mark("pings and pages")

	// --ip, and what stands against it.
	chosen := strings.TrimSuffix(web, web[strings.LastIndexByte(web, '.')+1:]) + "60"
	if got := a.container("chosen", "common", "--ip", chosen); got != chosen {
		t.Errorf("--ip %s gave %s", chosen, got)
	}
	a.fails(chosen, dockerCLI, "run", "-d", "--name", "again", "--network", "common", "--ip", chosen, dockerImage)
	a.fails("lies in a block of", dockerCLI, "run", "-d", "--name", "foreign", "--network", "common", "--ip", client, dockerImage)
	mark("--ip")

	// Networks with names: apart, on one machine and across two.
	shopA, shopB := a.container("shop-a", "shop"), b.container("shop-b", "shop")
	vaultA, vaultB := a.container("vault-a", "vault"), b.container("vault-b", "vault")
	mark("four more containers")
	b.gets("shop-b", shopA, "hello from shop-a")
	a.gets("shop-a", shopB, "hello from shop-b")
	a.gets("vault-a", vaultB, "hello from vault-b")
	var probes sync.WaitGroup
	for _, no := range []struct {
		d        *dockerHost
		from, to string
	}{
		{a, "shop-a", vaultA}, {a, "web", shopA}, {a, "vault-a", web}, // on one machine
		{b, "shop-b", vaultA}, {b, "client", shopA}, {b, "vault-b", web}, // across
	} {
		probes.Go(func() { no.d.gets(no.from, no.to, "") })
	}
	probes.Wait()
	// --internal: no world.
	if _, err := a.try(dockerCLI, "exec", "vault-a", "ping", "-c", "1", "-W", "1", "198.18.1.2"); err == nil {
		t.Error("an internal network has a way to the world")
	}
	a.reaches("", vaultB) // a machine reaches every container
	mark("isolation")

	// A container in two networks, connected at run time and by its machine's DNS.
	b.run(dockerCLI, "network", "connect", "--alias", "safe", "vault", "shop-b")
	both := b.address("shop-b", "vault")
	a.gets("vault-a", both, "hello from shop-b")
	a.gets("shop-a", shopB, "hello from shop-b")
	b.gets("shop-b", vaultA, "hello from vault-a")
	b.gets("shop-b", shopA, "hello from shop-a")
	b.gets("vault-b", "safe", "hello from shop-b")
	b.gets("shop-b", "vault-b", "hello from vault-b")
	b.run(dockerCLI, "restart", "-t", "0", "shop-b")
	shopB, both = b.address("shop-b", "shop"), b.address("shop-b", "vault")
	a.gets("vault-a", both, "hello from shop-b")
	a.gets("shop-a", shopB, "hello from shop-b")
	b.run(dockerCLI, "network", "disconnect", "vault", "shop-b")
	b.gets("shop-b", vaultA, "")
	b.gets("shop-b", shopA, "hello from shop-a")
	mark("two networks")

	// -p
	a.container("port", "shop", "-p", "8080:80")
	b.published(b.Host(), "198.18.1.1:8080", "hello from port")
	a.published(a.Host(), "198.18.1.1:8080", "hello from port") // from the machine itself
	a.fails("published for", dockerCLI, "run", "-d", "--name", "port2", "--network", "shop", "-p", "8080:80", dockerImage)
	a.container("port6", "common", "-p", "8081:80")
	for _, at := range []string{"198.18.1.1", "[2001:db8:18::1]"} {
		b.published(b.Host(), at+":8081", "hello from port6")
	}
	mark("-p")

	// weft restarts, weft is killed: connections go on, and Docker goes on working.
	flow := b.Command(dockerCLI, "exec", "client", "ping", "-i", "0.1", "-c", "40", "-W", "20", web)
	b.must(flow.Start())
	a.must(a.Stop())
	if _, err := os.Lstat(a.Path(dockerPlug)); err == nil {
		t.Error("the socket outlives weft")
	}
	a.again()
	b.Crash()
	if _, err := os.Lstat(b.Path(dockerPlug)); err != nil {
		t.Error("a killed weft cannot have removed its socket", err)
	}
	b.again()
	b.lossless(flow, "restart and kill of weft")
	a.gets("shop-a", shopB, "hello from shop-b")
	b.gets("client", shopA, "")
	late := b.container("late", "shop")
	a.gets("shop-a", late, "hello from late")
	mark("restart and kill of weft")

	// A stale socket: dockerd gives a call up after 15 s, and all else goes on meanwhile.
	b.Crash()
	slow := b.Command(dockerCLI, "run", "-d", "--name", "slow", "--network", "shop", dockerImage)
	b.must(slow.Start())
	began := time.Now()
	b.run(dockerCLI, "run", "--rm", "--network", "none", dockerImage, "true")
	b.run(dockerCLI, "ps")
	t.Logf("without weft everything else takes %v", time.Since(began).Round(time.Millisecond))
	b.again()
	if err := slow.Wait(); err != nil { // dockerd tries again until then
		if time.Since(began) < 15*time.Second {
			t.Errorf("a container that was started while weft was down: %v", err)
		}
		b.run(dockerCLI, "rm", "-f", "slow")
		b.run(dockerCLI, "run", "-d", "--name", "slow", "--network", "shop", dockerImage)
	}
	mark("stale socket")

	// dockerd restarts, and is killed: its containers go on (live-restore).
	for name, end := range map[string]func(){
		"restart": func() { b.must(b.docker.Stop(startPatience)) }, "kill": func() { b.docker.Kill() },
	} {
		flow := a.Command(dockerCLI, "exec", "shop-a", "ping", "-i", "0.1", "-c", "30", "-W", "20", late)
		a.must(flow.Start())
		end()
		b.startDocker("--live-restore")
		b.lossless(flow, name+" of dockerd")
		a.gets("shop-a", late, "hello from late")
		b.run(dockerCLI, "restart", "-t", "0", "late")
		late = b.address("late", "shop")
		a.gets("shop-a", late, "hello from late")
		mark(name + " of dockerd")
	}
	// Without live-restore its containers end with the next one, which says so, and can be started again.
	a.docker.Kill()
	a.startDocker()
	a.run(dockerCLI, "start", "shop-a", "web")
	shopA = a.address("shop-a", "shop")
	b.gets("late", shopA, "hello from shop-a")
	mark("dockerd without live-restore")

	for _, d := range []*dockerHost{a, b} {
		d.run("sh", "-c", dockerCLI+" rm -f $("+dockerCLI+" ps -aq)")
		d.run(dockerCLI, "network", "rm", "common", "shop", "vault")
	}

	// The example: two services on two machines.
	text, err := os.ReadFile("../../examples/compose/compose.yaml")
	a.must(err)
	compose := []string{
		"env", "IMAGE=" + dockerImage, "WEB=" + chosen, "POOL=" + dockerPool,
		"docker-compose", "--file", "/root/compose.yaml", "--project-name", "shop",
	}
	for d, service := range map[*dockerHost]string{a: "web", b: "client"} {
		d.must(d.WriteFile("/root/compose.yaml", text, 0o644))
		d.run(append(compose, "up", "--detach", service)...)
	}
	b.gets("shop_client_1", "web", "hello from web")
	b.published(b.Host(), "198.18.1.1:8080", "hello from web")
	for _, d := range []*dockerHost{a, b} {
		d.run(append(compose, "down", "--timeout", "0")...)
	}
	mark("compose")

	// Everything is gone afterwards.
	for _, d := range []*dockerHost{a, b} {
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
	mark("gone")
}
