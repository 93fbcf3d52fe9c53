package host

import (
	"context"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// Underlay lists the devices that are up and have an address that others can reach: not loopback, not link-local, not
// weft's own, not a bridge of containers or virtual machines, and not inside any of the pools.
func (h *Host) Underlay(ctx context.Context, pools []netip.Prefix) ([]Interface, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	links, err := h.nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	at := map[int][]netip.Prefix{}
	for _, family := range h.families() {
		addrs, err := h.nl.AddrList(nil, family)
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		for _, a := range addrs {
			p, ok := toPrefix(a.IPNet)
			if ok && p.Addr().IsGlobalUnicast() && !within(p.Addr(), pools) {
				at[a.LinkIndex] = append(at[a.LinkIndex], p)
			}
		}
	}
	ports := bridgePorts(links)
	var out []Interface
	for _, raw := range links {
		l := toLink(raw)
		if !l.Up || l.Name == "lo" || len(at[l.Index]) == 0 || strings.HasPrefix(l.Name, DevicePrefix) ||
			strings.HasPrefix(l.Name, VethPrefix) && (l.Kind == "veth" || l.Name == GuestDevice) || innerName(l) {
			continue
		}
		if l.Kind == "bridge" && inward(ports[l.Index]) {
			if out, err := h.leadsOut(l.Index); err != nil || !out {
				if err != nil {
					return nil, err
				}
				continue
			}
		}
		out = append(out, Interface{Name: l.Name, MTU: l.MTU, Addrs: at[l.Index]})
	}
	return out, nil
}

// innerNames are devices of container runtimes and hypervisors. Their addresses are the same on every machine that has
// the program, so a peer that dials one would reach itself.
var innerNames = [...]string{
	"docker0", "docker_gwbridge", "br-????????????", "podman*", "cni-podman*", "cni0", "cbr0", "nerdctl*", "lxcbr*", "lxdbr*",
	"incusbr*", "virbr*", "vnet*", "vmnet*", "flannel*", "cilium_*", "cali*", "kube-*", "nodelocaldns", "antrea-*", "weave",
}

// innerName reports whether a device's name says that it leads only to what runs on this machine. A wildcard could hit a
// network card that somebody has renamed.
func innerName(l Link) bool {
	return slices.ContainsFunc(innerNames[:], func(pattern string) bool {
		ok, _ := path.Match(pattern, l.Name) // the patterns are good
		return ok && (l.Kind != "" || !strings.ContainsAny(pattern, "*?"))
	})
}

// inward reports whether all ports of a bridge lead to what runs on this machine. One without ports waits for some.
func inward(ports []Link) bool {
	return !slices.ContainsFunc(ports, func(p Link) bool { return p.Kind != "veth" && p.Kind != "tun" && p.Kind != "dummy" })
}

// leadsOut reports whether a default route leaves by a device: in a container the way out is a veth, too.
func (h *Host) leadsOut(index int) (bool, error) {
	for _, family := range h.families() {
		routes, err := h.nl.RouteList(nil, family)
		if err != nil {
			return false, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if dst, ok := toPrefix(r.Dst); r.LinkIndex == index && ok && dst.Bits() == 0 {
				return true, nil
			}
		}
	}
	return false, nil
}

// bridgePorts lists the devices in each bridge, by the bridge's index.
func bridgePorts(links []netlink.Link) map[int][]Link {
	ports := map[int][]Link{}
	for _, l := range links {
		if master := l.Attrs().MasterIndex; master != 0 {
			ports[master] = append(ports[master], toLink(l))
		}
	}
	return ports
}

func within(a netip.Addr, prefixes []netip.Prefix) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
