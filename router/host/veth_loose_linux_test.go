package host_test

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"weft/router/host"
	"weft/router/host/hosttest"
)

// A container runtime moves the loose end and gives it an address and routes; nothing else is needed for packets to flow.
func TestALoosePairWorksOnceSomebodyHasMovedItsEnd(t *testing.T) {
	ns, pod := hosttest.NewNS(t), hosttest.NewNS(t)
	h := ns.Host()
	v := host.Veth{
		ID: "c1/eth", MAC: "02:42:00:00:00:07", MTU: 1420,
		V4: netip.MustParseAddr("10.32.0.7"), V6: netip.MustParseAddr("fd00::a20:7"),
	}
	for range 2 { // again before anybody has moved it
		if err := h.Plug(t.Context(), v); err != nil {
			t.Fatal(err)
		}
	}
	ns.Up("lo", "10.32.0.1/32", "fd00::a20:1/128")
	namespace, err := os.Open(pod.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer namespace.Close()
	ns.Do(func() error {
		l, err := netlink.LinkByName(host.LooseName(v.ID))
		if err != nil {
			return err
		}
		if l.Attrs().HardwareAddr.String() != v.MAC || l.Attrs().MTU != v.MTU || l.Attrs().Flags&net.FlagUp != 0 {
			t.Errorf("the loose end is %+v", l.Attrs())
		}
		return netlink.LinkSetNsFd(l, int(namespace.Fd()))
	})
	pod.Up(host.LooseName(v.ID), "10.32.0.7/32", "fd00::a20:7/128")
	pod.Do(func() error {
		l, err := netlink.LinkByName(host.LooseName(v.ID))
		if err != nil {
			return err
		}
		gateway := net.IPv4(169, 254, 1, 1)
		if err := netlink.RouteAdd(&netlink.Route{
			LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: gateway, Mask: net.CIDRMask(32, 32)},
		}); err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gateway}); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP("fe80::1")})
	})
	for _, addr := range []string{"10.32.0.1", "fd00::a20:1"} {
		ns.Do(func() error {
			l, err := net.Listen("tcp", net.JoinHostPort(addr, "80"))
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		})
		pod.Do(func() error {
			c, err := (&net.Dialer{Timeout: time.Minute}).DialContext(t.Context(), "tcp", net.JoinHostPort(addr, "80"))
			if err != nil {
				return err
			}
			return c.Close()
		})
	}
	pod.Do(func() error {
		l, err := netlink.LinkByName(host.LooseName(v.ID))
		if err != nil {
			return err
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			entries, err := netlink.NeighList(l.Attrs().Index, family)
			if err != nil {
				return err
			}
			for _, e := range entries {
				if e.State&netlink.NUD_NOARP == 0 {
					t.Errorf("the pod asked for a neighbour: %+v", e)
				}
			}
		}
		return nil
	})
	if err := h.Unplug(t.Context(), host.VethName(v.ID)); err != nil {
		t.Fatal(err)
	}
	pod.Do(func() error {
		if _, err := netlink.LinkByName(host.LooseName(v.ID)); err == nil {
			t.Error("the pod's end is still there")
		}
		return nil
	})
}

// Strict, unless the pod has more interfaces.
func TestTheReversePathFilterOfALoosePair(t *testing.T) {
	ns := hosttest.NewNS(t)
	h := ns.Host()
	for siblings, want := range map[bool]string{false: "1", true: "0"} {
		v := host.Veth{ID: "c/" + want, MTU: 1420, V4: netip.MustParseAddr("10.32.0.7"), Siblings: siblings}
		if err := h.Plug(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		ns.Do(func() error {
			b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + host.VethName(v.ID) + "/rp_filter")
			if got := strings.TrimSpace(string(b)); got != want {
				t.Errorf("with siblings %v it is %s", siblings, got)
			}
			return err
		})
	}
	if err := h.Plug(t.Context(), host.Veth{ID: "c/bad", MAC: "no"}); err == nil {
		t.Error("a bad MAC is taken")
	}
}
