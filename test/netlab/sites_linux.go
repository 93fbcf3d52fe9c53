package netlab

import (
	"fmt"
	"net/netip"
)

// Sites is the preset of ThreeSites.
type Sites struct {
	A, B, C  *Host // one per subnet
	Router   *Host // between them
	Internet *Host // outside: what hosts and pods reach through NAT of their own

	LinkA, LinkB, LinkC, LinkInternet *Link
}

// ThreeSites makes three hosts on three subnets, IPv4 and IPv6, behind one router, and a host outside. Site n (from 1) has
// 198.18.n.0/24 and 2001:db8:n::/64 with the router at .1 and the host at .2; the outside host is 203.0.113.10 and
// 2001:db8:ffff::10. Each end of a link is called eth0 on the host and after the host on the router.
func ThreeSites(l *Lab) *Sites {
	s := &Sites{Router: l.Router("router")}
	s.A, s.LinkA = s.Site(l, "a", 1)
	s.B, s.LinkB = s.Site(l, "b", 2)
	s.C, s.LinkC = s.Site(l, "c", 3)
	s.Internet = l.Host("internet")
	s.LinkInternet = l.Link(s.Internet.Port("eth0", "203.0.113.10/24", "2001:db8:ffff::10/64"),
		s.Router.Port("internet", "203.0.113.1/24", "2001:db8:ffff::1/64"))
	s.Internet.DefaultVia(addr("203.0.113.1"), addr("2001:db8:ffff::1"))
	return s
}

// Site adds a host on subnet n behind the router.
func (s *Sites) Site(l *Lab, name string, n int) (*Host, *Link) {
	h := l.Host(name)
	k := l.Link(h.Port("eth0", fmt.Sprintf("198.18.%d.2/24", n), fmt.Sprintf("2001:db8:%x::2/64", n)),
		s.Router.Port(name, fmt.Sprintf("198.18.%d.1/24", n), fmt.Sprintf("2001:db8:%x::1/64", n)))
	h.DefaultVia(addr(fmt.Sprintf("198.18.%d.1", n)), addr(fmt.Sprintf("2001:db8:%x::1", n)))
	return h, k
}

// Hosts are the three machines.
func (s *Sites) Hosts() []*Host { return []*Host{s.A, s.B, s.C} }

// Links are the cables of the three machines to the router.
func (s *Sites) Links() []*Link { return []*Link{s.LinkA, s.LinkB, s.LinkC} }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }
