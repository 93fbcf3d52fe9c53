package docker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

const (
	optionNetwork = "network" // -o network=NAME
	maxName       = 63
	maxNetworks   = 256
	maxEndpoints  = 4096
)

func (p *Plugin) createNetwork(ctx context.Context, r networkRequest) (any, error) {
	n := network{Internal: r.Options.Internal}
	for _, key := range slices.Sorted(maps.Keys(r.Options.Generic)) {
		value, _ := r.Options.Generic[key].(string)
		switch {
		case key != optionNetwork:
			return nil, fmt.Errorf("weft has no option %.60q. The only one is network=NAME", key)
		case !validName(value):
			return nil, fmt.Errorf("network=%.80s: want 1 to %d lower-case letters, digits, dots and hyphens, a letter or digit at both ends",
				value, maxName)
		}
		n.Name = value
	}
	if err := p.checkPools(ctx, r); err != nil {
		return nil, err
	}
	err := p.book.change(func(c *content) error {
		for id, other := range c.Networks {
			if id == r.NetworkID || other.Name != n.Name {
				continue
			}
			if n.Name == "" {
				return fmt.Errorf("the Docker network %.12s is the cluster's common network already, and both would be one. "+
					"Keep them apart by a name: -o network=NAME, the same on every machine", id)
			}
			return fmt.Errorf("the Docker network %.12s is %s already. Use that one, or choose another name", id, n.Name)
		}
		if _, again := c.Networks[r.NetworkID]; !again && len(c.Networks) >= maxNetworks {
			return fmt.Errorf("this machine has %d networks, which is the most", maxNetworks)
		}
		c.Networks[r.NetworkID] = n
		return nil
	})
	if err != nil {
		return nil, err
	}
	return struct{}{}, p.arrange(ctx)
}

// checkPools refuses a network whose addresses come from elsewhere: nobody would know the way to them.
func (p *Plugin) checkPools(ctx context.Context, r networkRequest) error {
	for _, d := range slices.Concat(r.IPv4Data, r.IPv6Data) {
		if d.AddressSpace != addressSpace {
			return errors.New("the addresses must be weft's, too. Add: --ipam-driver weft")
		}
	}
	alone6, err := p.alone6(ctx)
	switch {
	case err != nil:
		return err
	case alone6 && len(r.IPv6Data) == 0:
		return errors.New("the cluster has IPv6 addresses alone. Add: --ipv6")
	case !alone6 && len(r.IPv4Data) == 0:
		return errors.New("a network without IPv4 is not supported: the cluster's addresses are of both families. Leave out --ipv4=false")
	}
	return nil
}

func (p *Plugin) deleteNetwork(ctx context.Context, r networkRequest) (any, error) {
	if _, known := p.book.read().Networks[r.NetworkID]; !known {
		return struct{}{}, nil
	}
	var gone []string
	err := p.book.change(func(c *content) error {
		delete(c.Networks, r.NetworkID)
		gone = nil
		for id, e := range c.Endpoints {
			if e.Network == r.NetworkID {
				gone = append(gone, e.Lease)
				delete(c.Endpoints, id)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, lease := range gone {
		if err := p.drop(ctx, lease); err != nil {
			return nil, err
		}
	}
	return struct{}{}, p.arrange(ctx)
}

func (p *Plugin) createEndpoint(ctx context.Context, r endpointRequest) (any, error) {
	name, err := leaseName(r.Interface.MacAddress)
	if err != nil {
		return nil, err
	}
	given, err := r.Interface.given()
	if err != nil {
		return nil, err
	}
	lease, err := p.leaseOf(ctx, given)
	switch {
	case err != nil:
		return nil, err
	case lease.Name != name:
		return nil, fmt.Errorf("%s was not given out for %s", given, r.Interface.MacAddress)
	}
	e := endpoint{Network: r.NetworkID, Lease: name, MAC: r.Interface.MacAddress, V4: lease.V4}
	if r.Interface.AddressIPv6 != "" {
		e.V6 = lease.V6
	}
	if !e.V4.IsValid() {
		if e.Wanted, err = portsOf(r.Options.Ports, e.V4, e.V6); err != nil {
			return nil, err
		}
	}
	err = p.book.change(func(c *content) error {
		if _, ok := c.Networks[r.NetworkID]; !ok {
			return unknownNetwork(r.NetworkID)
		}
		if len(c.Endpoints) >= maxEndpoints {
			return fmt.Errorf("this machine has %d containers on weft's networks, which is the most", maxEndpoints)
		}
		c.Endpoints[r.EndpointID] = e
		return nil
	})
	if err != nil {
		return nil, err
	}
	return endpointReply{}, p.arrange(ctx)
}

// given is the address by which a lease is found.
func (i endpointInterface) given() (netip.Addr, error) {
	text := i.Address
	if a, err := netip.ParsePrefix(text); text == "" || err == nil && stands(a.Addr()) {
		text = i.AddressIPv6
	}
	a, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%.50q is no address", text)
	}
	return a.Addr(), nil
}

func unknownNetwork(id string) error {
	return fmt.Errorf("weft does not know the network %.12s: its state began anew since. Remove it and make it again: docker network rm", id)
}

func (p *Plugin) deleteEndpoint(ctx context.Context, r endpointRequest) (any, error) {
	e, known := p.book.read().Endpoints[r.EndpointID]
	if !known {
		return struct{}{}, nil
	}
	if err := p.node.Disconnect(ctx, e.Lease); err != nil {
		return nil, err
	}
	return struct{}{}, p.forget(ctx, func(id string, _ endpoint) bool { return id == r.EndpointID })
}

// forget strikes endpoints from the book.
func (p *Plugin) forget(ctx context.Context, which func(id string, e endpoint) bool) error {
	struck := 0
	for id, e := range p.book.read().Endpoints {
		if which(id, e) {
			struck++
		}
	}
	if struck == 0 {
		return nil
	}
	err := p.book.change(func(c *content) error {
		maps.DeleteFunc(c.Endpoints, which)
		return nil
	})
	if err != nil {
		return err
	}
	return p.arrange(ctx)
}

// join makes the cable. What dockerd then does with its end cannot be undone by weft, so the others are told before. Without
// IPv4 there is no gateway of IPv4, by which dockerd before 28 recognises a container's way to the world: it would ask nobody
// to publish its ports, so that is done here.
func (p *Plugin) join(ctx context.Context, r endpointRequest) (any, error) {
	var e endpoint
	err := p.book.change(func(c *content) error {
		var ok bool
		if e, ok = c.Endpoints[r.EndpointID]; !ok {
			return fmt.Errorf("weft does not know the endpoint %.12s. Start the container again", r.EndpointID)
		}
		e.Sandbox = r.SandboxKey
		e.Gateway = freeGateway(*c, r.EndpointID, r.SandboxKey)
		if e.Gateway == 0 {
			return fmt.Errorf("a container is in at most %d networks of weft", maxGateway)
		}
		c.Endpoints[r.EndpointID] = e
		if len(e.Wanted) > 0 {
			return c.publish(r.EndpointID, e.Wanted)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := p.arrange(ctx); err != nil {
		return nil, err
	}
	cable, err := p.node.Connect(ctx, e.Lease, e.MAC)
	if err != nil {
		return nil, err
	}
	reply := joinReply{InterfaceName: interfaceName{cable.Link, "eth"}, DisableGatewayService: true}
	if e.V4.IsValid() {
		reply.Gateway = gateway4 + strconv.Itoa(e.Gateway)
		reply.StaticRoutes = []staticRoute{{Destination: reply.Gateway + "/32", RouteType: routeOnLink}}
	}
	if e.V6.IsValid() && cable.V6 {
		reply.GatewayIPv6 = gateway6
		if !e.V4.IsValid() && e.Gateway == 1 {
			reply.StaticRoutes = everywhere6
		}
	}
	return reply, nil
}

// everywhere6 stands for the default route of IPv6, which dockerd before 28 makes only beside one of IPv4; a later one has no
// quarrel with halves. One interface of a container has them: the same on two are refused by the kernel.
var everywhere6 = []staticRoute{{Destination: "::/1", RouteType: routeOnLink}, {Destination: "8000::/1", RouteType: routeOnLink}}

const maxGateway = 254

// freeGateway is the lowest number that no other interface of the container has: dockerd gives each a route to its own.
func freeGateway(c content, id, sandbox string) int {
	var taken [maxGateway + 1]bool
	for other, e := range c.Endpoints {
		if other != id && e.Sandbox == sandbox && e.Gateway <= maxGateway {
			taken[e.Gateway] = true
		}
	}
	for n := 1; n <= maxGateway; n++ {
		if !taken[n] {
			return n
		}
	}
	return 0
}

func (p *Plugin) leave(ctx context.Context, r endpointRequest) (any, error) {
	e, known := p.book.read().Endpoints[r.EndpointID]
	if !known {
		return struct{}{}, nil
	}
	if err := p.node.Disconnect(ctx, e.Lease); err != nil {
		return nil, err
	}
	err := p.book.change(func(c *content) error {
		if e, ok := c.Endpoints[r.EndpointID]; ok {
			e.Sandbox, e.Gateway, e.Ports = "", 0, nil
			c.Endpoints[r.EndpointID] = e
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return struct{}{}, p.arrange(ctx)
}

func validName(s string) bool {
	ok := s != "" && len(s) <= maxName
	for i, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= '0' && r <= '9'
		ok = ok && (letter || i > 0 && i < len(s)-1 && strings.ContainsRune("-._", r))
	}
	return ok
}
