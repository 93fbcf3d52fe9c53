package host_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"weft/router/host"
	"weft/router/host/hosttest"
)

// Whatever the machine's and the pod's defaults are, a pair is as it must be, and nothing else was touched.
func TestPlugOnAMachineOfOtherDefaults(t *testing.T) {
	machine, pod := hosttest.NewNS(t), hosttest.NewNS(t)
	for key, value := range map[string]string{
		"net/ipv4/conf/default/rp_filter": "0", "net/ipv6/conf/default/accept_ra": "2", "net/ipv6/conf/default/disable_ipv6": "1",
		"net/ipv6/conf/default/forwarding": "0", "net/ipv6/conf/default/addr_gen_mode": "0",
	} {
		machine.Sysctl(key, value)
	}
	pod.Sysctl("net/ipv6/conf/default/disable_ipv6", "1")
	pod.Sysctl("net/ipv6/conf/default/accept_dad", "1")
	h := machine.Host()
	v := host.Veth{
		ID: "a/eth0", NetNS: pod.Path, IfName: "eth0", MTU: 1380, V4: netip.MustParseAddr("10.32.0.9"), V6: netip.MustParseAddr("fd77::9"),
	}
	for range 2 { // the second finds the pair
		if err := h.Plug(t.Context(), v); err != nil {
			t.Fatal(err)
		}
	}
	name := host.VethName(v.ID)
	for h, want := range map[*host.Host]map[string]string{
		h: {
			"net/ipv4/conf/" + name + "/rp_filter": "1", "net/ipv6/conf/" + name + "/accept_ra": "0",
			"net/ipv6/conf/" + name + "/disable_ipv6": "0", "net/ipv6/conf/" + name + "/forwarding": "1",
			"net/ipv6/conf/" + name + "/addr_gen_mode": "1", "net/ipv6/conf/default/disable_ipv6": "1",
		},
		pod.Host(): {
			"net/ipv6/conf/eth0/accept_ra": "0", "net/ipv6/conf/eth0/accept_dad": "0", "net/ipv6/conf/eth0/disable_ipv6": "0",
			"net/ipv6/conf/default/disable_ipv6": "1",
		},
	} {
		have, err := h.Snapshot(t.Context(), slices.Collect(maps.Keys(want)))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, have.Sysctls); diff != "" {
			t.Error(diff)
		}
	}
	if err := h.Plugged(t.Context(), v); err != nil {
		t.Error(err)
	}
	on, err := h.Snapshot(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if l, ok := on.Link(name); !ok || !l.Up || l.MTU != v.MTU {
		t.Errorf("the host's end is %+v", l)
	}
	if i := slices.IndexFunc(on.Addresses, func(a host.Address) bool { return a.Link == name }); i >= 0 {
		t.Errorf("the host's end has made itself %s", on.Addresses[i].Prefix)
	}
}

// What is to be cut off may be gone in part; what is left goes nevertheless.
func TestCutTakesWhatIsLeft(t *testing.T) {
	machine, pod := hosttest.NewNS(t), hosttest.NewNS(t)
	h := machine.Host()
	v := host.Veth{
		ID: "a/eth0", NetNS: pod.Path, IfName: "eth0", MTU: 1380, V4: netip.MustParseAddr("10.32.0.9"), V6: netip.MustParseAddr("fd77::9"),
	}
	if err := h.Plug(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	ours := func() (left []netip.Prefix) {
		t.Helper()
		have, err := h.Snapshot(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range have.Routes {
			if r.Ours {
				left = append(left, r.Dst)
			}
		}
		return left
	}
	if n := len(ours()); n != 2 {
		t.Fatalf("%d routes of ours before, want 2", n)
	}
	gone := host.Route{Dst: netip.PrefixFrom(v.V4, 32), Link: host.VethName(v.ID)}
	if err := h.Apply(t.Context(), []host.Change{{Op: host.Delete, Route: &gone}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := h.Cut(t.Context(), v.ID, v.V4, v.V6); err != nil {
			t.Error(err)
		}
	}
	if left := ours(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := h.Unplug(t.Context(), host.VethName(v.ID), host.VethName("never/eth0")); err != nil {
		t.Error(err)
	}
	if err := h.Cut(t.Context(), v.ID, v.V4, v.V6); err != nil {
		t.Errorf("without the link: %v", err)
	}
}

// BenchmarkPlugMany plugs and cuts off pod after pod on a machine that has many already, and prints what that costs beside the
// kernel's own work: system calls are not counted by anything but a tracer, CPU time by the kernel.
func BenchmarkPlugMany(b *testing.B) {
	const many = 200
	machine := hosttest.NewNS(b)
	h := machine.Host()
	pods := make([]host.Veth, many)
	for i := range pods {
		pods[i] = host.Veth{
			ID: fmt.Sprintf("pod%d/eth0", i), NetNS: hosttest.NewNS(b).Path, IfName: "eth0", MTU: 1420,
			V4: netip.AddrFrom4([4]byte{10, 32, 0, byte(i + 1)}), V6: netip.MustParseAddr(fmt.Sprintf("fd77::%x", i+1)),
		}
	}
	var plug, cut time.Duration
	n := 0
	for b.Loop() {
		before := cpu(b)
		for _, v := range pods {
			if err := h.Plug(b.Context(), v); err != nil {
				b.Fatal(err)
			}
		}
		plugged := cpu(b)
		for _, v := range pods {
			if err := h.Cut(b.Context(), v.ID, v.V4, v.V6); err != nil {
				b.Fatal(err)
			}
		}
		plug, cut, n = plug+plugged-before, cut+cpu(b)-plugged, n+many
		b.StopTimer()
		for _, v := range pods {
			if err := h.Unplug(b.Context(), host.VethName(v.ID)); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(plug.Microseconds())/float64(n), "CPU-µs/plug")
	b.ReportMetric(float64(cut.Microseconds())/float64(n), "CPU-µs/cut")
	b.ReportMetric(0, "ns/op")
}

// cpu is what this process has used.
func cpu(tb testing.TB) time.Duration {
	tb.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
