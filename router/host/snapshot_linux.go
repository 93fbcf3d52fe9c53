package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernelMetric6 is what the kernel makes of an IPv6 route without a metric.
const kernelMetric6 = 1024

// Snapshot reads the present state; sysctls are those asked for, absent ones are left out.
func (h *Host) Snapshot(ctx context.Context, sysctls []string) (*Snapshot, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := &Snapshot{Sysctls: make(map[string]string, len(sysctls))}
	links, err := h.nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		s.Links = append(s.Links, toLink(l))
		names[l.Attrs().Index] = l.Attrs().Name
	}
	addrs, err := h.nl.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if p, ok := toPrefix(a.IPNet); ok {
			s.Addresses = append(s.Addresses, Address{
				Link: names[a.LinkIndex], Prefix: p,
				Passive: a.Flags&unix.IFA_F_DEPRECATED != 0,
			})
		}
	}
	for _, family := range h.families() {
		routes, err := h.nl.RouteList(nil, family)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			s.Routes = append(s.Routes, toRoute(r, names)...)
		}
	}
	if s.Rules, err = h.ourRules(); err != nil {
		return nil, err
	}
	if s.Gates, err = h.readGates(s.Links, s.Rules); err != nil {
		return nil, err
	}
	if len(sysctls) == 0 {
		return s, nil
	}
	return s, h.Do(func() error {
		for _, key := range sysctls {
			switch v, err := h.readSetting(key); {
			case err == nil:
				s.Sysctls[key] = v
			case !errors.Is(err, fs.ErrNotExist):
				return err
			}
		}
		return nil
	})
}

// ourRules lists the policy rules that carry Protocol.
func (h *Host) ourRules() (ours []Rule, err error) {
	for _, family := range h.families() {
		rules, err := h.nl.RuleList(family)
		if err != nil {
			if errors.Is(err, unix.EOPNOTSUPP) { // kernel without policy routing: none, and none can be made
				continue
			}
			return nil, fmt.Errorf("list rules: %w", err)
		}
		for _, r := range rules {
			if r.Protocol == Protocol {
				ours = append(ours, toRule(r, family))
			}
		}
	}
	return ours, nil
}

// Link finds one device by name; ok is false when there is none.
func (h *Host) Link(ctx context.Context, name string) (l Link, ok bool, err error) {
	if err := ctx.Err(); err != nil {
		return Link{}, false, err
	}
	found, err := h.nl.LinkByName(name)
	if gone(err) {
		return Link{}, false, nil
	}
	if err != nil {
		return Link{}, false, fmt.Errorf("find link %s: %w", name, err)
	}
	return toLink(found), true, nil
}

// families lists what dumps may be asked for. A kernel without IPv6 answers an IPv6 dump with one of all families.
func (h *Host) families() []int {
	if h.kernelIPv6() {
		return []int{netlink.FAMILY_V4, netlink.FAMILY_V6}
	}
	return []int{netlink.FAMILY_V4}
}

func toLink(l netlink.Link) Link {
	a := l.Attrs()
	out := Link{
		Name: a.Name, Index: a.Index, Kind: l.Type(), MTU: a.MTU, Up: a.Flags&net.FlagUp != 0,
		MAC: a.HardwareAddr.String(),
	}
	switch l := l.(type) {
	case *netlink.Device:
		out.Kind = ""
	case *netlink.Tuntap:
		out.Kind = "tun"
	case *netlink.Veth:
		out.PeerIndex = a.ParentIndex
	case *netlink.Vxlan:
		out.VXLAN = &VXLAN{VNI: l.VxlanId, Port: uint16(l.Port)}
	}
	if s := a.Statistics; s != nil {
		out.RxBytes, out.TxBytes = s.RxBytes, s.TxBytes
	}
	return out
}

func toPrefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	if bits == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones), true
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// toIP is nil for the zero address, as the library wants it.
func toIP(a netip.Addr) net.IP {
	if !a.IsValid() {
		return nil
	}
	return a.AsSlice()
}

func toAddr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func toRoute(r netlink.Route, names map[int]string) []Route {
	dst, ok := toPrefix(r.Dst)
	if !ok {
		return nil
	}
	out := Route{
		Dst: dst, Link: names[r.LinkIndex], Src: toAddr(r.Src), MTU: r.MTU, Metric: r.Priority,
		Ours: r.Protocol == Protocol,
	}
	if r.Gw != nil {
		out.Via = toAddr(r.Gw)
	} else if via, ok := r.Via.(*netlink.Via); ok && via != nil {
		out.Via = toAddr(via.Addr)
	}
	if dst.Addr().Is6() && out.Metric == kernelMetric6 {
		out.Metric = 0
	}
	switch r.Type {
	case unix.RTN_UNICAST:
	case unix.RTN_UNREACHABLE:
		out.Kind, out.Link = Unreachable, "" // the kernel hangs IPv6 ones on lo
	default:
		out.Kind = Other
	}
	if len(r.MultiPath) == 0 {
		return []Route{out}
	}
	var all []Route
	for _, hop := range r.MultiPath {
		one := out
		one.Link, one.Via = names[hop.LinkIndex], toAddr(hop.Gw)
		all = append(all, one)
	}
	return all
}

func toRule(r netlink.Rule, family int) Rule {
	out := Rule{
		V6: family == netlink.FAMILY_V6, Priority: r.Priority, IIf: r.IifName,
		Drop: r.Table != unix.RT_TABLE_MAIN, Ours: r.Protocol == Protocol,
	}
	out.From, _ = toPrefix(r.Src)
	out.To, _ = toPrefix(r.Dst)
	return out
}

// Neighbours lists the permanent entries of a device, those of its forwarding database included.
func (h *Host) Neighbours(ctx context.Context, link string) ([]Neighbour, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l, err := h.nl.LinkByName(link)
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", link, err)
	}
	var out []Neighbour
	for _, family := range append(h.families(), unix.AF_BRIDGE) {
		entries, err := h.nl.NeighList(l.Attrs().Index, family)
		if err != nil {
			return nil, fmt.Errorf("list neighbours of %s: %w", link, err)
		}
		for _, e := range entries {
			a := toAddr(e.IP)
			if e.State&unix.NUD_PERMANENT == 0 || !a.IsValid() || len(e.HardwareAddr) == 0 {
				continue
			}
			if family != unix.AF_BRIDGE && a.IsMulticast() {
				continue
			}
			out = append(out, Neighbour{
				Link: link, Addr: a, MAC: e.HardwareAddr.String(),
				Underlay: family == unix.AF_BRIDGE,
			})
		}
	}
	return out, nil
}

const sysctlRoot = "/proc/sys/"

// readSetting is readSysctl but for one file, which the kernel answers from only while nobody changes links: who reads it else
// does so again and again until then. The same is told of the link, to whoever waits.
func (h *Host) readSetting(key string) (string, error) {
	device, found := strings.CutPrefix(key, "net/ipv6/conf/")
	device, mode := strings.CutSuffix(device, "/addr_gen_mode")
	if !found || !mode {
		return readSysctl(key)
	}
	switch e, err := h.endOf(device); {
	case err != nil && gone(err), err == nil && e.addrGen < 0:
		return "", fmt.Errorf("read sysctl %s: %w", key, fs.ErrNotExist)
	case err != nil:
		return "", fmt.Errorf("read sysctl %s: %w", key, err)
	default:
		return strconv.Itoa(e.addrGen), nil
	}
}

// readSysctl and writeSysctl act on the namespace of the thread that they run on.
func readSysctl(key string) (string, error) {
	b, err := os.ReadFile(sysctlRoot + key)
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func writeSysctl(key, value string) error {
	fd, err := unix.Open(sysctlRoot+key, unix.O_WRONLY|unix.O_CLOEXEC, 0) // no file of os: nothing is to be polled
	if err == nil {
		_, err = unix.Write(fd, []byte(value))
		if cerr := unix.Close(fd); err == nil {
			err = cerr
		}
	}
	if err != nil {
		return fmt.Errorf("write sysctl %s: %w", key, err)
	}
	return nil
}

// kernelIPv6 reports whether the kernel has IPv6 at all; IPv6 whether it may be used.
func (h *Host) kernelIPv6() bool {
	_, err := os.Stat(sysctlRoot + "net/ipv6/conf")
	return err == nil
}

// IPv6 answers nil when the host speaks IPv6, else why not.
func (h *Host) IPv6() error {
	if !h.kernelIPv6() {
		return fmt.Errorf("IPv6 is %w: the kernel was started without it", ErrUnsupported)
	}
	return h.Do(func() error {
		for _, where := range []string{"all", "lo"} {
			key := "net/ipv6/conf/" + where + "/disable_ipv6"
			if v, err := readSysctl(key); err == nil && v != "0" {
				return fmt.Errorf("IPv6 is %w: switched off by %s=%s", ErrUnsupported, strings.ReplaceAll(key, "/", "."), v)
			}
		}
		return nil
	})
}
