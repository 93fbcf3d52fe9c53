package router

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/mesh/peer"
)

const (
	holdMin  = 10 * time.Second
	holdMax  = 10 * time.Minute
	calmDown = 10 * time.Minute // without a change for so long, the guard against flapping starts anew
)

// option is one driver of this machine, as a choice needs it.
type option struct {
	Driver
	absent error // why it cannot be used here
}

// node is this machine, as a choice needs it.
type node struct {
	underlay []netip.Addr
	trusted  []netip.Prefix
}

// Choice is which transport carries packets to a peer, and why. It is also the history that the next choice needs.
type Choice struct {
	Transport string // empty: none can
	Reason    string
	Rejected  []Rejection // those before it, in order
	Since     time.Time

	hold   time.Duration // a better transport must wait for so long; 0 until one that worked was left
	proven bool          // it was seen to work
}

// candidate is a driver that may be used for a peer.
type candidate struct {
	option
	endpoint netip.AddrPort
	sources  []netip.Addr
}

// candidates lists the drivers that both ends can and may use, best first, and says why the others are out.
func candidates(self node, options []option, p Peer) (in []candidate, out []Rejection) {
	for _, o := range options {
		c := candidate{option: o, endpoint: p.Endpoint}
		if !c.endpoint.IsValid() && len(p.Info.Endpoints) > 0 {
			c.endpoint = p.Info.Endpoints[0]
		}
		reason := ""
		switch {
		case p.Info.State == peer.Removed:
			reason = "it was removed"
		case o.absent != nil:
			reason = "not available here: " + o.absent.Error()
		case !p.Info.Known:
			reason = "its record has not arrived yet"
		case !slices.Contains(p.Info.Transports, o.Name):
			reason = "the peer does not offer it"
		case o.OwnPort && p.NoDirect != "":
			reason = p.NoDirect
		case !o.Sealed:
			c.sources, reason = trustedSources(self, p.Info, o.Driver)
			if reason == "" {
				c.endpoint = trustedEndpoint(c.sources, c.endpoint, p.Info.Endpoints)
			}
		}
		if reason != "" {
			out = append(out, Rejection{o.Name, reason})
			continue
		}
		in = append(in, c)
	}
	return in, out
}

// trustedSources lists the peer's addresses with which plain packets may be exchanged: each side's trusted subnets hold an
// address of this machine and that one of the peer.
func trustedSources(self node, p peer.Info, d Driver) (addrs []netip.Addr, reason string) {
	if len(self.trusted) == 0 {
		return nil, "it does not encrypt, and --trusted-subnets is not set here"
	}
	if len(p.Trusted) == 0 {
		return nil, "it does not encrypt, and --trusted-subnets is not set there"
	}
	both := func(a netip.Addr) bool { return holds(self.trusted, a) && holds(p.Trusted, a) }
	var own4, own6 bool
	for _, a := range self.underlay {
		if a = a.Unmap(); both(a) {
			own4, own6 = own4 || a.Is4(), own6 || a.Is6()
		}
	}
	own4, own6 = own4 && !d.V6Only, own6 && !d.V4Only
	for _, e := range p.Endpoints {
		a := e.Addr().Unmap()
		if (a.Is4() && own4 || a.Is6() && own6) && both(a) && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	if len(addrs) == 0 {
		return nil, "it does not encrypt, and the trusted subnets of both sides do not hold an address of each"
	}
	return addrs, ""
}

// trustedEndpoint keeps the path in use where it is a trusted one.
func trustedEndpoint(trusted []netip.Addr, now netip.AddrPort, all []netip.AddrPort) netip.AddrPort {
	if slices.Contains(trusted, now.Addr().Unmap()) {
		return now
	}
	for _, e := range all {
		if e.Addr().Unmap() == trusted[0] {
			return e
		}
	}
	return netip.AddrPortFrom(trusted[0], now.Port())
}

func holds(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// choose picks among the candidates, given what is known of each link and what was chosen before.
//
// A transport in use is left at once when it may not be used any more, or when its link is not up and another's is: to
// bear silence is the transport's part. A better one is taken only when it answers. While none that worked was ever left, as
// after a start or a first contact, it is taken at once: whoever answers first is no better for it. Else not before the hold
// time is over, which doubles with each change.
func choose(cands []candidate, out []Rejection, links map[string]Link, was Choice, now time.Time) Choice {
	index := func(name string) int {
		return slices.IndexFunc(cands, func(c candidate) bool { return c.Name == name })
	}
	var pick int
	cur := index(was.Transport)
	best := slices.IndexFunc(cands, func(c candidate) bool { return links[c.Name].usable() })
	next := Choice{Transport: was.Transport, Since: was.Since, hold: was.hold, proven: was.proven}
	switch {
	case len(cands) == 0:
		next = Choice{Reason: "no transport can reach it", Rejected: out, Since: was.Since}
		if was.Transport != "" || was.Since.IsZero() {
			next.Since = now
		}
		if len(out) > 0 {
			next.Reason += ": " + describe(out)
		}
		return next
	case cur < 0:
		pick = max(best, 0)
	case links[was.Transport].usable():
		pick = cur
		if best < cur && now.Sub(was.Since) >= was.hold {
			pick = best
		}
	default:
		if pick = best; best < 0 {
			pick = cur
		}
	}
	if c := cands[pick]; c.Name != was.Transport {
		next.Transport, next.Since = c.Name, now
		next.proven = false
		better := cur >= 0 && pick < cur
		switch {
		case !was.proven, better && was.hold == 0: // nothing failed that had worked
		case now.Sub(was.Since) >= calmDown:
			next.hold = holdMin
		default:
			next.hold = min(max(2*was.hold, holdMin), holdMax)
		}
	}
	next.proven = next.proven || links[cands[pick].Name].Up
	next.Reason = reason(cands, pick)
	for i, c := range cands {
		if i < pick {
			why := links[c.Name].Reason
			switch {
			case links[c.Name].usable():
				why = "it answers again; waiting until it has done so for " + next.hold.String()
			case why == "":
				why = "it does not answer"
			}
			out = append(out, Rejection{c.Name, why})
		}
	}
	next.Rejected = out
	return next
}

// reason says why it is this candidate. How its link is, the status tells beside it.
func reason(cands []candidate, pick int) string {
	switch {
	case !cands[pick].Sealed:
		return "both sides trust the subnets between them (not encrypted)"
	case pick == 0:
		return "best of those that both sides have"
	}
	return "best of those that answer"
}

func describe(out []Rejection) string {
	parts := make([]string, len(out))
	for i, r := range out {
		parts[i] = fmt.Sprintf("%s: %s", r.Transport, r.Reason)
	}
	return strings.Join(parts, "; ")
}
