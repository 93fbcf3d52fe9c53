package host_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"weft/router/host"
	"weft/router/host/hosttest"
)

// Each part of a connection is missed when it is gone.
func TestPluggedMissesEachPart(t *testing.T) {
	machine, pod := hosttest.NewNS(t), hosttest.NewNS(t)
	h := machine.Host()
	v := host.Veth{
		ID: "a/eth0", NetNS: pod.Path, IfName: "eth0", MTU: 1420, V4: netip.MustParseAddr("10.32.0.9"), V6: netip.MustParseAddr("fd77::9"),
		MAC: "02:00:5e:10:00:07",
	}
	inPod, onHost := pod.Host(), machine.Host()
	for _, c := range []struct {
		what   string
		damage func() error
		words  string
	}{
		{"everything", func() error { return onHost.Unplug(t.Context(), host.VethName(v.ID)) }, "there is no " + host.VethName(v.ID)},
		{"the pod's interface is down", link(inPod, "eth0", netlink.LinkSetDown), "is down"},
		{"the host's end is down", link(onHost, host.VethName(v.ID), netlink.LinkSetDown), "is down"},
		{"the IPv6 address", address(inPod, "eth0", "fd77::9/128"), "has lost the address fd77::9"},
		{"the IPv4 address", address(inPod, "eth0", "10.32.0.9/32"), "has lost the address 10.32.0.9"},
		{"the host's route", func() error {
			r := host.Route{Dst: netip.MustParsePrefix("10.32.0.9/32"), Link: host.VethName(v.ID)}
			return onHost.Apply(t.Context(), []host.Change{{Op: host.Delete, Route: &r}})
		}, "no route to 10.32.0.9"},
	} {
		if err := h.Plug(t.Context(), v); err != nil {
			t.Fatalf("before %s: %v", c.what, err)
		}
		if err := h.Plugged(t.Context(), v); err != nil {
			t.Fatalf("whole, and %v", err)
		}
		if err := c.damage(); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		if err := h.Plugged(t.Context(), v); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("without %s it says %v", c.what, err)
		}
	}
	if err := h.Plugged(t.Context(), host.Veth{ID: "a/eth0", NetNS: "/nowhere", IfName: "eth0"}); err == nil {
		t.Error("a namespace that is not there is whole")
	}
}

func link(h *host.Host, name string, change func(netlink.Link) error) func() error {
	return func() error {
		return h.Do(func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return change(l)
		})
	}
}

func address(h *host.Host, name, addr string) func() error {
	return func() error {
		return link(h, name, func(l netlink.Link) error {
			a, err := netlink.ParseAddr(addr)
			if err != nil {
				return err
			}
			return netlink.AddrDel(l, a)
		})()
	}
}
