package docker

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// The gateway that a container sees is no address of anybody: its interface takes every packet to the machine. The first
// network of a container has the one that all pods of weft have.
const (
	gateway4      = "169.254.1."
	firstGateway4 = "169.254.1.1"
	gateway6      = "fe80::1"
)

// Pools have one name per family: a container's two addresses belong together.
const (
	pool4 = "weft4"
	pool6 = "weft6"
)

const leasePrefix = "docker-"

// leaseName is what an endpoint's claim is called. dockerd asks for addresses before there is an endpoint, but for both
// with the MAC that it will have.
func leaseName(mac string) (string, error) {
	hw, err := net.ParseMAC(mac)
	if err != nil || len(hw) != 6 {
		return "", fmt.Errorf("%.40q is no MAC address", mac)
	}
	return leasePrefix + strings.ReplaceAll(hw.String(), ":", ""), nil
}

// Any pool will do for a network whose pool was not asked for: dockerd would compare it with the machine's routes, find
// that weft has some there, and ask for another for ever.
const (
	anyPool4 = "0.0.0.0/0"
	anyPool6 = "::/0"
)

// A cluster of IPv6 alone has no IPv4 addresses, and Docker before 28 knows no network without: its containers get one that
// stands in, link-local and without any route, so that nobody takes a way by IPv4 that leads nowhere. It follows from the MAC
// and names nothing: two containers may have the same.
var standIns = netip.MustParsePrefix("169.254.0.0/16")

// firstStandIn comes after those that a gateway may have.
const firstStandIn = 2 << 8

// standIn is never the last address of the network, which would be that of a broadcast.
func standIn(lease string) netip.Addr {
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(lease))
	a, n := standIns.Addr().As4(), firstStandIn+sum.Sum32()%(1<<16-1-firstStandIn)
	a[2], a[3] = byte(n>>8), byte(n)
	return netip.AddrFrom4(a)
}

// stands reports whether an address stands in for one that there is not.
func stands(a netip.Addr) bool {
	b := a.AsSlice()
	return standIns.Contains(a) && b[2] >= firstStandIn>>8
}

// requestPool agrees to the cluster's pool, or to none in particular. Which addresses of it a machine has, the ring
// decides.
func (p *Plugin) requestPool(ctx context.Context, r poolRequest) (any, error) {
	reply := poolReply{PoolID: pool4, Pool: anyPool4, Data: map[string]string{optionGateway: firstGateway4 + "/32"}}
	if r.V6 {
		reply = poolReply{PoolID: pool6, Pool: anyPool6, Data: map[string]string{optionGateway: gateway6 + "/128"}}
	}
	pools, err := p.poolsOf(ctx, r.V6)
	switch {
	case err != nil:
		return nil, err
	case len(pools) == 0 && r.V6:
		return nil, errors.New("the cluster has no IPv6 pool. Leave out --ipv6")
	case len(pools) == 0 && r.Pool != "" && r.Pool != reply.Pool:
		return nil, errors.New("the cluster has no IPv4 pool. Leave out the IPv4 --subnet")
	case r.SubPool != "":
		return nil, errors.New("which part of a pool a machine has is up to the cluster. Leave out --ip-range")
	case r.Pool != "" && r.Pool != reply.Pool:
		wish, err := netip.ParsePrefix(r.Pool)
		if err != nil || !slices.Contains(pools, wish.Masked()) {
			return nil, fmt.Errorf("%.50s is not a pool of the cluster. Try: --subnet %s", r.Pool, pools[0])
		}
		reply.Pool = wish.Masked().String()
	}
	return reply, nil
}

// poolsOf lists the cluster's pools of a family.
func (p *Plugin) poolsOf(ctx context.Context, v6 bool) ([]netip.Prefix, error) {
	pools, err := p.node.Pools(ctx)
	return slices.DeleteFunc(slices.Clone(pools), func(q netip.Prefix) bool { return q.Addr().Is6() != v6 }), err
}

// requestAddress claims. dockerd also asks for what it has already, to be sure of it after a restart.
func (p *Plugin) requestAddress(ctx context.Context, r addressRequest) (any, error) {
	var wish netip.Addr
	if r.Address != "" {
		var err error
		if wish, err = netip.ParseAddr(r.Address); err != nil {
			return nil, fmt.Errorf("%.50q is no address", r.Address)
		}
	}
	mac := r.Options[optionMAC]
	switch {
	case r.Options[optionPurpose] == optionGateway && (r.Address == firstGateway4 || r.Address == gateway6):
		return addressReply{prefix(wish)}, nil // after its restart
	case r.Options[optionPurpose] == optionGateway:
		return nil, errors.New("the gateway is the same for all containers, " + firstGateway4 + ". Leave out --gateway")
	case mac == "" && stands(wish):
		return addressReply{prefix(wish)}, nil // likewise
	case mac == "" && wish.IsValid():
		lease, err := p.leaseOf(ctx, wish)
		if err != nil {
			return nil, err
		}
		if lease.Name == "" {
			return nil, fmt.Errorf("%s cannot be set aside. Leave out --aux-address", wish)
		}
		return addressReply{prefix(wish)}, nil
	case mac == "":
		return nil, errors.New("dockerd asks for an address for nobody")
	}
	name, err := leaseName(mac)
	if err != nil {
		return nil, err
	}
	alone6, err := p.alone6(ctx)
	switch {
	case err != nil:
		return nil, err
	case alone6 && r.PoolID != pool6 && wish.IsValid() && wish != standIn(name):
		return nil, fmt.Errorf("%s cannot be chosen: the cluster has IPv6 addresses alone. Choose one by --ip6", wish)
	case alone6 && r.PoolID != pool6:
		return addressReply{prefix(standIn(name))}, nil
	}
	// What the name has already is right, but not for a second container with its MAC.
	for id, e := range p.book.read().Endpoints {
		if e.Lease == name && !slices.Contains(e.addresses(), wish) {
			return nil, fmt.Errorf("the MAC address %s belongs to another container, endpoint %.12s. Choose another --mac-address", mac, id)
		}
	}
	if r.PoolID == pool6 && !alone6 {
		return p.second(ctx, name, wish)
	}
	lease, err := p.node.Claim(ctx, name, wish)
	if err != nil {
		return nil, err
	}
	return addressReply{prefix(lease.first())}, nil
}

// alone6 reports whether the cluster has a pool of IPv6 and none of IPv4.
func (p *Plugin) alone6(ctx context.Context) (bool, error) {
	pools, err := p.node.Pools(ctx)
	return !slices.ContainsFunc(pools, func(q netip.Prefix) bool { return q.Addr().Is4() }), err
}

// second is the IPv6 address that belongs to a claim's IPv4 address.
func (p *Plugin) second(ctx context.Context, name string, wish netip.Addr) (any, error) {
	lease, err := p.node.Claim(ctx, name, netip.Addr{})
	switch {
	case err != nil:
		return nil, err
	case !lease.V6.IsValid():
		return nil, errors.New("the cluster has no IPv6 pool. Leave out --ipv6")
	case wish.IsValid() && wish != lease.V6:
		return nil, fmt.Errorf("the IPv6 address that belongs to %s is %s. Leave out --ip6, or choose both by --ip", lease.V4, lease.V6)
	}
	return addressReply{prefix(lease.V6)}, nil
}

// releaseAddress gives both addresses of a claim back with the first of them. What Docker never had stays: the gateway
// that it returns with the network, what stood in, and claims of others.
func (p *Plugin) releaseAddress(ctx context.Context, r addressRequest) (any, error) {
	a, err := netip.ParseAddr(r.Address)
	if err != nil || r.Address == firstGateway4 || r.Address == gateway6 || stands(a) {
		return struct{}{}, nil //nolint:nilerr // there is nothing to give back
	}
	lease, err := p.leaseOf(ctx, a)
	if err != nil || lease.Name == "" {
		return struct{}{}, err
	}
	return struct{}{}, p.drop(ctx, lease.Name)
}

// leaseOf finds Docker's claim of an address; one without a name when there is none.
func (p *Plugin) leaseOf(ctx context.Context, a netip.Addr) (Lease, error) {
	all, err := p.node.Leases(ctx)
	if err != nil {
		return Lease{}, err
	}
	for _, l := range all {
		if (l.V4 == a || l.V6 == a) && strings.HasPrefix(l.Name, leasePrefix) {
			return l, nil
		}
	}
	return Lease{}, nil
}

// drop ends everything that has a lease's name.
func (p *Plugin) drop(ctx context.Context, name string) error {
	if err := p.forget(ctx, func(_ string, e endpoint) bool { return e.Lease == name }); err != nil {
		return err
	}
	if err := p.node.Disconnect(ctx, name); err != nil {
		return err
	}
	return p.node.Release(ctx, name)
}

// prefix is an address alone, as Docker writes it.
func prefix(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }
