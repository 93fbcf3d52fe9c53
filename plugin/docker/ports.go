package docker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// publish is asked for the endpoint that is a container's way to the world.
func (p *Plugin) publish(ctx context.Context, r endpointRequest) (any, error) {
	if len(r.Options.Ports) == 0 {
		return struct{}{}, nil
	}
	err := p.book.change(func(c *content) error {
		e, ok := c.Endpoints[r.EndpointID]
		if !ok {
			return fmt.Errorf("weft does not know the endpoint %.12s. Start the container again", r.EndpointID)
		}
		ports, err := portsOf(r.Options.Ports, e.V4, e.V6)
		if err != nil {
			return err
		}
		return c.publish(r.EndpointID, ports)
	})
	if err != nil {
		return nil, err
	}
	return struct{}{}, p.arrange(ctx)
}

// publish gives an endpoint ports that no other container has. What another interface of the same container had of them moves.
func (c content) publish(id string, ports []Port) error {
	e := c.Endpoints[id]
	for other, o := range c.Endpoints {
		if other == id {
			continue
		}
		rest := slices.DeleteFunc(slices.Clone(o.Ports), func(q Port) bool { return slices.ContainsFunc(ports, q.collides) })
		if len(rest) == len(o.Ports) {
			continue
		}
		if e.Sandbox == "" || o.Sandbox != e.Sandbox {
			i := slices.IndexFunc(o.Ports, func(q Port) bool { return slices.ContainsFunc(ports, q.collides) })
			return fmt.Errorf("port %d of this machine is published for %s already. Choose another", o.Ports[i].HostPort, o.addresses()[0])
		}
		o.Ports = rest
		c.Endpoints[other] = o
	}
	e.Ports = ports
	c.Endpoints[id] = e
	return nil
}

func (p *Plugin) unpublish(ctx context.Context, r endpointRequest) (any, error) {
	if len(p.book.read().Endpoints[r.EndpointID].Ports) == 0 {
		return struct{}{}, nil
	}
	err := p.book.change(func(c *content) error {
		e := c.Endpoints[r.EndpointID]
		e.Ports = nil
		c.Endpoints[r.EndpointID] = e
		return nil
	})
	if err != nil {
		return nil, err
	}
	return struct{}{}, p.arrange(ctx)
}

// portsOf reads what was given with -p. A port of all the machine's addresses leads to both of the container's, or to the one
// that it has.
func portsOf(wish []portMapping, to4, to6 netip.Addr) ([]Port, error) {
	var all []Port
	for _, w := range wish {
		port := Port{Container: to4, Port: uint16(w.Port), HostPort: uint16(w.HostPort)}
		switch {
		case w.Proto != 6 && w.Proto != 17:
			return nil, errors.New("only TCP and UDP ports can be published")
		case w.Port < 1 || w.Port > 65535 || w.HostPort < 0 || w.HostPort > 65535:
			return nil, fmt.Errorf("there is no port %d", max(w.Port, w.HostPort))
		case w.HostPort == 0 || w.HostPortEnd != 0 && w.HostPortEnd != w.HostPort:
			return nil, fmt.Errorf("weft chooses no port by itself. Name one: -p 8080:%d", w.Port)
		}
		port.UDP = w.Proto == 17
		if w.HostIP != "" {
			a, err := netip.ParseAddr(w.HostIP)
			switch {
			case err != nil:
				return nil, fmt.Errorf("%.50q is no address", w.HostIP)
			case a.IsLoopback():
				return nil, fmt.Errorf("a port cannot be published at %s, only at addresses of this machine that others see", a)
			case a.Is6() && !a.IsUnspecified() && !to6.IsValid():
				return nil, fmt.Errorf("a port cannot be published at %s: the container has no IPv6 address. Make its network with --ipv6", a)
			case a.Is6() && !to6.IsValid():
				continue // the same once more for a family that this container does not speak
			case a.Is4() && !a.IsUnspecified() && !to4.IsValid():
				return nil, fmt.Errorf("a port cannot be published at %s: the container has no IPv4 address. Leave the address out", a)
			case a.Is4() && !to4.IsValid():
				continue // likewise
			case a.Is6():
				port.Container = to6
			}
			if !a.IsUnspecified() {
				port.Host = a
			}
		}
		if port.Container.IsValid() {
			all = append(all, port)
		}
		if w.HostIP == "" && to6.IsValid() {
			port.Container = to6
			all = append(all, port)
		}
	}
	return all, nil
}

// collides reports whether a packet could be for both.
func (p Port) collides(q Port) bool {
	return p.UDP == q.UDP && p.HostPort == q.HostPort && (p.Host == q.Host || !p.Host.IsValid() || !q.Host.IsValid())
}
