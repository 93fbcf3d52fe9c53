package runtimes_test

import (
	"fmt"
	"strings"
	"testing"

	"weft/test/runtimes"
)

// podman needs a backend that it is told: with netavark on the machine, newer ones choose that.
const containersConf = `[network]
network_backend = "cni"
default_network = "weft"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
`

// Podman with its CNI backend: containers of two machines, wishes for address and MAC, a published port, a restart.
func TestPodman(t *testing.T) {
	need(t, "podman crun iptables", "/usr/bin/podman", "/usr/bin/crun", "/usr/sbin/iptables")
	s := tell(t, 2, "--pool", "10.98.0.0/16")
	_, web := images(t)
	run := func(w *runtimes.Weft, line string) string { t.Helper(); return s.sh(w, "podman "+line) }
	for _, w := range s.nodes {
		s.must(w.WriteFile("/etc/containers/containers.conf", []byte(containersConf), 0o644))
		s.must(w.WriteFile("/var/lib/images/web.tar", web, 0o644))
		run(w, "load -qi /var/lib/images/web.tar")
	}
	a, b := s.nodes[0], s.nodes[1]
	address := func(w *runtimes.Weft, name string) string {
		t.Helper()
		return run(w, "exec "+name+" ip -4 -o addr show dev eth0 | awk '{print $4}' | cut -d/ -f1")
	}
	const image = " docker.io/library/web:1"
	before := s.settled(a)
	run(a, "run -d --name web1 --network weft -p 8089:8080"+image)
	run(b, "run -d --name web2 --network weft --network-alias db"+image)
	for _, c := range []struct {
		from *runtimes.Weft
		name string
		to   string
	}{{a, "web1", address(b, "web2")}, {b, "web2", address(a, "web1")}} {
		s.must(s.page(c.from, c.name, c.to))
	}
	s.must(runtimes.Poll(within(t, patience), func() error {
		page, err := fetch(t.Context(), hostOf(s, "internet"), a.Host().Addr4().String()+":8089")
		if err == nil && !strings.Contains(page, "hello") {
			err = fmt.Errorf("got %q", page)
		}
		return err
	}))
	// A container that is started again has another namespace and may ask for the same address.
	claims, err := a.Claims(t.Context())
	s.must(err)
	wish := claims[0].Address.Next().Next().Next()
	run(a, fmt.Sprintf("run -d --name fixed --network weft --ip %s --mac-address 02:00:5e:10:00:09%s", wish, image))
	for range 2 {
		if got := address(a, "fixed"); got != wish.String() {
			t.Errorf("the container has %s, wants %s", got, wish)
		}
		if got := run(a, "exec fixed cat /sys/class/net/eth0/address"); got != "02:00:5e:10:00:09" {
			t.Errorf("the container has the MAC %s", got)
		}
		run(a, "restart -t 0 fixed")
	}
	run(a, "rm -f -t 0 fixed")
	// A power cut, after which podman starts the containers that it remembers.
	was := address(a, "web1")
	s.must(a.Kill())
	s.must(a.Boot())
	s.must(a.Up())
	s.whole()
	run(a, "start web1")
	if got := address(a, "web1"); got != was {
		t.Errorf("after the power cut web1 has %s, had %s", got, was)
	}
	s.must(s.page(a, "web1", address(b, "web2")))
	run(a, "rm -f -t 0 web1")
	if claims, err = a.Claims(t.Context()); err != nil || len(claims) > 0 {
		t.Errorf("claims stay: %v, %v", claims, err)
	}
	s.must(runtimes.Poll(within(t, patience), func() error {
		after, err := a.Picture(t.Context())
		if err == nil && links(after) != links(before) {
			err = fmt.Errorf("something is left behind:\n%s\n---\n%s", links(before), links(after))
		}
		return err
	}))
}

// page asks a container's page from another until it comes: a server listens a moment after its container has started.
func (s *story) page(w *runtimes.Weft, from, to string) error {
	s.Helper()
	return runtimes.Poll(within(s.T, patience), func() error {
		got, err := w.Exec(s.Context(), "podman", "exec", from, "timeout", "10", "wget", "-qO-", "http://"+to+":8080/")
		if err == nil && !strings.Contains(got, "hello from a pod") {
			err = fmt.Errorf("%s gets %q from %s", from, got, to)
		}
		return err
	})
}

// links are the network devices and addresses of a picture.
func links(picture string) string {
	a, _, _ := strings.Cut(picture, "# ip route show")
	return a
}
