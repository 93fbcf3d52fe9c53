package host_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"weft/router/host"
	"weft/router/host/hosttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTUNOutlivesItsHolder(t *testing.T) {
	ns := hosttest.NewNS(t)
	h := ns.Host()
	open := func(queues int, super bool) ([]*os.File, host.Offload) {
		t.Helper()
		files, off, err := h.OpenTUN("weft-sl", queues, super)
		if errors.Is(err, host.ErrUnsupported) {
			t.Skipf("skipped: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(files) != queues {
			t.Fatalf("%d files, want %d", len(files), queues)
		}
		return files, off
	}
	closeAll := func(files []*os.File) {
		for _, f := range files {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	index := func() int {
		t.Helper()
		s, err := h.Snapshot(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		l, ok := s.Link("weft-sl")
		if !ok || l.Kind != "tun" {
			t.Fatalf("the device is %+v", l)
		}
		return l.Index
	}
	files, off := open(2, true)
	if !off.VnetHdr || !off.TSO && off.Reason == "" {
		t.Errorf("offloads: %+v", off)
	}
	t.Logf("offloads: %+v", off)
	first := index()
	if err := h.Apply(t.Context(), []host.Change{
		{Link: &host.Link{Name: "weft-sl", Up: true, MTU: 1420}},
		{Route: &host.Route{Dst: netip.MustParsePrefix("10.32.8.0/22"), Link: "weft-sl", MTU: 1420}},
	}); err != nil {
		t.Fatal(err)
	}
	closeAll(files)
	if index() != first {
		t.Error("another device")
	}
	files, _ = open(3, true) // taken over with more queues
	if index() != first {
		t.Error("taking over made another device")
	}
	// The runtime can poll the files, and a packet to the route comes out of one of them.
	got := make(chan error, len(files))
	for _, f := range files {
		_ = f.SetReadDeadline(time.Now().Add(time.Minute))
		go func() {
			b := make([]byte, 2048)
			for {
				n, err := f.Read(b)
				if err != nil || n > 10+20 && b[10] == 0x45 && b[10+16] == 10 && b[10+17] == 32 { // after the header of 10 bytes
					got <- err
					return
				}
			}
		}()
	}
	ns.Do(func() error {
		c, err := net.Dial("udp", "10.32.8.1:7")
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("hello"))
		return err
	})
	if err := <-got; err != nil {
		t.Error(err)
	}
	closeAll(files)
	for range files[1:] {
		<-got //nolint:errcheck // it was closed
	}
	files, off = open(1, false)
	if off.VnetHdr || off.TSO || off.USO || off.Reason == "" {
		t.Errorf("without offloads: %+v", off)
	}
	closeAll(files)
	if _, _, err := h.OpenTUN("weft-sl", 1000, true); err == nil {
		t.Error("1000 queues accepted")
	}
	ns.Do(func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "weft-br"}})
	})
	if _, _, err := h.OpenTUN("weft-br", 1, true); err == nil || !strings.Contains(err.Error(), "bridge") {
		t.Errorf("a device of another kind: %v", err)
	}
}

func TestProbesAnswer(t *testing.T) {
	hosttest.NewNS(t) // skips without the rights
	for name, probe := range map[string]host.Probe{
		"veth": host.ProbeVeth, "vxlan": host.ProbeVXLAN, "tun": host.ProbeTUN,
		"nftables": host.ProbeFilter, "ipv6": host.ProbeIPv6,
	} {
		switch err := probe(t.Context()); {
		case err == nil:
		case errors.Is(err, host.ErrUnsupported):
			t.Logf("%s: %v", name, err)
		default:
			t.Errorf("%s: cannot tell: %v", name, err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := probe(ended); err == nil || errors.Is(err, host.ErrUnsupported) {
			t.Errorf("%s: answers %v although nobody waits", name, err)
		}
	}
}

func TestWatchTellsOfDamageAndEnds(t *testing.T) {
	ns := hosttest.NewNS(t)
	h := ns.Host()
	rs := host.Ruleset{
		Sets:   []host.FilterSet{{Name: "s", Type: "ipv4_addr", Elements: []string{"192.0.2.1"}}},
		Chains: []host.Chain{{Name: "c", Hook: host.Input, Rules: []string{"ip saddr @s drop"}}},
	}
	if _, err := h.Filter(t.Context(), rs); err != nil {
		t.Fatal(err)
	}
	route := host.Route{Dst: netip.MustParsePrefix("10.32.0.0/12"), Kind: host.Unreachable, Metric: host.UnreachableMetric}
	if err := h.Apply(t.Context(), []host.Change{{Route: &route}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := h.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// In this order: a table's end is told part by part, and what comes while one event waits to be read is not told again.
	for _, c := range []struct {
		what   string
		damage func() error
	}{
		{"route", func() error { return h.Apply(t.Context(), []host.Change{{Op: host.Delete, Route: &route}}) }},
		{host.GuardGone, func() error { return ns.Host().RemoveFilter(t.Context()) }},
	} {
		if err := c.damage(); err != nil {
			t.Fatal(err)
		}
		select {
		case e := <-events:
			if e.What != c.what {
				t.Errorf("%s: told of %q", c.what, e.What)
			}
		case <-time.After(time.Minute):
			t.Errorf("%s: not told", c.what)
		}
	}
	cancel()
	for range events {
	}
}

func TestPlugBesideAnotherDefaultRoute(t *testing.T) {
	machine, pod, other := hosttest.NewNS(t), hosttest.NewNS(t), hosttest.NewNS(t)
	hosttest.Wire(t, pod, "eth0", []string{"192.0.2.2/24"}, other, "x", []string{"192.0.2.1/24"})
	pod.Route("0.0.0.0/0", "192.0.2.1")
	h := machine.Host()
	v := host.Veth{
		ID: "a/net1", NetNS: pod.Path, IfName: "net1", MTU: 1420, V4: netip.MustParseAddr("10.32.0.9"),
		V6: netip.MustParseAddr("fd77::9"), Routes: []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12")},
	}
	for range 2 {
		if err := h.Plug(t.Context(), v); err != nil {
			t.Fatal(err)
		}
	}
	routes := func() string {
		s, err := pod.Host().Snapshot(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for _, r := range s.Routes {
			lines = append(lines, r.String())
		}
		return strings.Join(lines, "\n")
	}
	got := routes()
	for _, want := range []string{"0.0.0.0/0 via 192.0.2.1 dev eth0", "10.32.0.0/12 via 169.254.1.1 dev net1", "::/0 via fe80::1 dev net1"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "0.0.0.0/0 via 169.254.1.1") {
		t.Errorf("took the pod's default route:\n%s", got)
	}
	// The same container with another address: the former one goes.
	v.V4 = netip.MustParseAddr("10.32.0.10")
	if err := h.Plug(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	s, err := pod.Host().Snapshot(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range s.Addresses {
		if a.Prefix.Addr() == netip.MustParseAddr("10.32.0.9") {
			t.Error("the former address is still there")
		}
	}
}

func TestFailedPlugLeavesNothing(t *testing.T) {
	machine, pod := hosttest.NewNS(t), hosttest.NewNS(t)
	h := machine.Host()
	// The host address does not exist, so the last step, the route, fails.
	v := host.Veth{
		ID: "a/eth0", NetNS: pod.Path, IfName: "eth0", MTU: 1420, V4: netip.MustParseAddr("10.32.0.9"),
		Source4: netip.MustParseAddr("10.32.0.1"),
	}
	if err := h.Plug(t.Context(), v); err == nil {
		t.Fatal("accepted")
	}
	for _, ns := range []*hosttest.NS{machine, pod} {
		s, err := ns.Host().Snapshot(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Links) != 1 {
			t.Errorf("links left: %+v", s.Links)
		}
	}
}

func TestNetNSPath(t *testing.T) {
	for in, want := range map[string]string{
		"/proc/1/ns/net": "/proc/1/ns/net", "42": "/proc/42/ns/net", "blue": "/run/netns/blue",
		"./x": "./x", "-1": "/run/netns/-1",
	} {
		if got := host.NetNSPath(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestUnderlayLeavesOutOurOwn(t *testing.T) {
	machine, other := hosttest.NewNS(t), hosttest.NewNS(t)
	hosttest.Wire(t, machine, "eth0", []string{"192.0.2.2/24", "10.32.0.3/32"}, other, "x", nil)
	hosttest.Wire(t, machine, "wf0", []string{"198.51.100.1/24"}, other, "y", nil)
	hosttest.Wire(t, machine, "idle", nil, other, "z", nil)
	run := func(args ...string) {
		t.Helper()
		if err := host.Do(machine.Path, func() error { return exec.Command("ip", args...).Run() }); err != nil {
			t.Fatalf("ip %v: %v", args, err)
		}
	}
	// Bridges of containers have the same addresses everywhere.
	for _, args := range [][]string{
		{"link", "add", "docker0", "type", "bridge"},
		{"addr", "add", "172.17.0.1/16", "dev", "docker0"},
		{"link", "add", "own0", "type", "bridge"},
		{"addr", "add", "172.18.0.1/16", "dev", "own0"},
		{"link", "set", "docker0", "up"},
		{"link", "set", "own0", "up"},
	} {
		run(args...)
	}
	underlay := func() ([]host.Interface, error) {
		return machine.Host().Underlay(t.Context(), []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12")})
	}
	list, err := underlay()
	if err != nil || len(list) != 1 || list[0].Name != "eth0" || len(list[0].Addrs) != 1 || list[0].MTU != 1500 {
		t.Errorf("%+v, %v", list, err)
	}
	run("route", "add", "default", "via", "172.18.0.9")
	if list, err := underlay(); err != nil || len(list) != 2 {
		t.Errorf("a bridge with the default route: %+v, %v", list, err)
	}
}

func TestDoSaysWhatIsNoNamespace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, "/run/netns/there-is-none"} {
		var bad *host.NetNSError
		if err := host.Do(path, func() error { return nil }); !errors.As(err, &bad) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func BenchmarkPlug(b *testing.B) {
	machine, pod := hosttest.NewNS(b), hosttest.NewNS(b)
	h := machine.Host()
	v := host.Veth{ID: "a/eth0", NetNS: pod.Path, IfName: "eth0", MTU: 1420, V4: netip.MustParseAddr("10.32.0.9"), V6: netip.MustParseAddr("fd77::9")}
	for b.Loop() {
		if err := h.Plug(b.Context(), v); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := h.Unplug(b.Context(), host.VethName(v.ID)); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
