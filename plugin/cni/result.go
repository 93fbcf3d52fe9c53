package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"weft/prog/control"
)

// before reads the result of the plugins that ran before; nil when there were none.
func (c call) before() (result *current.Result, err error) {
	if raw := string(c.conf.PrevResult); raw == "" || raw == "null" {
		return nil, nil
	}
	defer func() {
		if recover() != nil { // the library takes it for granted that no element of a list is null
			err = errors.New("an element of a list is null")
		}
		if err != nil {
			result, err = nil, refuse(codeDecode, "the result of the plugins before (prevResult) cannot be read", describe(err))
		}
	}()
	r, err := create.Create(c.conf.CNIVersion, c.conf.PrevResult)
	if err != nil {
		return nil, err
	}
	result, err = current.NewResultFromResult(r)
	if err == nil && (slices.Contains(result.Interfaces, nil) || slices.Contains(result.IPs, nil) || slices.Contains(result.Routes, nil)) {
		err = errors.New("an element of a list is null")
	}
	return result, err
}

// attached adds what the daemon made to what was there before.
func (c call) attached(before *current.Result, r control.AttachReply) *current.Result {
	result := before
	if result == nil {
		result = &current.Result{DNS: c.conf.DNS}
	}
	result.CNIVersion = current.ImplementedSpecVersion
	mtu := r.MTU
	if c.conf.CNIVersion < "1.1" { // which brought it
		mtu = 0
	}
	result.Interfaces = append(result.Interfaces,
		&current.Interface{Name: r.HostIf, Mac: r.HostMAC, Mtu: mtu},
		&current.Interface{Name: r.Ifname, Mac: r.MAC, Mtu: mtu, Sandbox: c.netns})
	inPod := len(result.Interfaces) - 1
	for i, a := range r.Addresses {
		ip := &current.IPConfig{Interface: &inPod, Address: ipNet(netip.PrefixFrom(a, a.BitLen()))}
		all := netip.PrefixFrom(a, 0).Masked()
		if i < len(r.Gateways) {
			ip.Gateway = r.Gateways[i].AsSlice()
			if !routed(result, all) {
				result.Routes = append(result.Routes, &types.Route{Dst: ipNet(all), GW: ip.Gateway})
			}
		}
		result.IPs = append(result.IPs, ip)
	}
	return result
}

// routed reports whether a route to exactly that prefix is there.
func routed(r *current.Result, dst netip.Prefix) bool {
	for _, have := range r.Routes {
		if have.Dst.String() == dst.String() {
			return true
		}
	}
	return false
}

// lent is the answer to a main plugin: addresses and routes, no interface.
func (c call) lent(r control.LendReply) *current.Result {
	result := &current.Result{CNIVersion: current.ImplementedSpecVersion, DNS: c.conf.DNS}
	for i, p := range r.Addresses {
		result.IPs = append(result.IPs, &current.IPConfig{Address: ipNet(p), Gateway: r.Gateways[i].AsSlice()})
		if c.conf.IPAM.Routes == nil {
			result.Routes = append(result.Routes, &types.Route{Dst: ipNet(netip.PrefixFrom(p.Addr(), 0).Masked())})
		}
	}
	if c.conf.IPAM.Routes != nil {
		result.Routes = *c.conf.IPAM.Routes
	}
	return result
}

// print writes a result in the words of the version that the runtime speaks.
func (c call) print(out io.Writer, r *current.Result) error {
	said, err := r.GetAsVersion(c.conf.CNIVersion)
	if err != nil {
		return fmt.Errorf("write result as CNI %s: %w", c.conf.CNIVersion, err)
	}
	b, err := json.MarshalIndent(said, "", "    ")
	if err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	_, err = out.Write(append(b, '\n'))
	return err
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
