package netlab

import (
	"fmt"
	"net/netip"
)

// Access is what stands between a machine and the internet.
type Access uint8

// The kinds of access, from the best to the worst.
const (
	Public       Access = iota // an address of its own, and nothing between
	BehindCone                 // NAT of the kind FullCone
	BehindHome                 // NAT of the kind AddressRestricted
	BehindStrict               // NAT of the kind EndpointIndependent
	BehindHard                 // NAT of the kind Symmetric
	OnlyTCP                    // NAT, and a firewall that lets out nothing but TCP to port 6783
	OnlyWeb                    // NAT, and a firewall that lets out nothing but TCP to port 443
)

// Accesses are all kinds.
func Accesses() []Access {
	return []Access{Public, BehindCone, BehindHome, BehindStrict, BehindHard, OnlyTCP, OnlyWeb}
}

// String is the name in words.
func (a Access) String() string {
	return [...]string{"open", "full cone", "address-restricted", "endpoint-independent", "symmetric", "TCP 6783 only", "TCP 443 only"}[a]
}

// Internet is the preset of NewInternet: a router in the middle, and sites around it.
type Internet struct {
	Core *Host
	lab  *Lab
	n    int
}

// Home is one site: a machine, and the box between it and the internet.
type Home struct {
	*Host
	Access  Access
	Box     *Host      // the router of the site; nil for an open one
	Outside netip.Addr // as the internet sees the site
	Link    *Link      // the cable from the site to the internet
}

// NewInternet makes the router in the middle. It is IPv4 only.
func NewInternet(l *Lab) *Internet { return &Internet{Core: l.Router("core"), lab: l} }

// Home adds a site. Site n, from 1, is 198.18.n.2 on the internet. Behind a box the machine is 192.168.n.2.
func (i *Internet) Home(name string, access Access) *Home {
	return i.HomeAt(name, access, fmt.Sprintf("192.168.%d", i.n+1))
}

// HomeAt is Home with the first three numbers of the addresses behind the box: those of many homes are the same.
func (i *Internet) HomeAt(name string, access Access, inside string) *Home {
	i.n++
	outside, core := fmt.Sprintf("198.18.%d.2", i.n), fmt.Sprintf("198.18.%d.1", i.n)
	m := i.lab.Host(name)
	h := &Home{Host: m, Access: access, Outside: addr(outside)}
	door := m
	if access != Public {
		h.Box = i.lab.Router(name + "-box")
		door = h.Box
	}
	h.Link = i.lab.Link(door.Port("eth0", outside+"/24"), i.Core.Port(name, core+"/24"))
	door.DefaultVia(addr(core))
	if h.Box == nil {
		return h
	}
	i.lab.Link(m.Port("eth0", inside+".2/24"), h.Box.Port("lan", inside+".1/24"))
	m.DefaultVia(addr(inside + ".1"))
	switch access {
	case BehindCone:
		h.Box.NAT("eth0", FullCone)
	case BehindHome:
		h.Box.NAT("eth0", AddressRestricted)
	case BehindHard:
		h.Box.NAT("eth0", Symmetric)
	case OnlyTCP, OnlyWeb:
		h.Box.NAT("eth0", EndpointIndependent)
		h.Box.AllowOut("eth0", map[Access]uint16{OnlyTCP: 6783, OnlyWeb: 443}[access])
	default:
		h.Box.NAT("eth0", EndpointIndependent)
	}
	return h
}

// Neighbour adds a machine behind the box of a home: both have one address on the internet.
func (h *Home) Neighbour(name string, n int) *Host {
	m := h.lab.Host(name)
	lan := fmt.Sprintf("10.254.%d", n)
	h.lab.Link(m.Port("eth0", lan+".2/24"), h.Box.Port(name, lan+".1/24"))
	m.DefaultVia(addr(lan + ".1"))
	return m
}
