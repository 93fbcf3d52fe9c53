package weftd

import (
	"context"
	"errors"

	"weft/mesh/peer"
	"weft/router"
	"weft/router/host"
	"weft/router/sleeve"
	"weft/router/vxlan"
)

// drivers lists the transports of this build, best first. A pair of nodes uses the first that both can and may use.
func drivers(h *host.Host, link *wirelink, self peer.ID) []router.Driver {
	return []router.Driver{
		vxlan.Driver(h, self),
		sleeve.Driver(link, host.ProbeTUN),
	}
}

// probe is one question that weft doctor asks the machine.
type probe struct {
	name     string
	run      func(context.Context) error
	hint     string
	optional bool
}

func probes() []probe {
	return []probe{
		{name: "tun", run: host.ProbeTUN, hint: "Try: modprobe tun; in a container, pass /dev/net/tun"},
		{name: "nftables", run: host.ProbeFilter, hint: "Try: modprobe nf_tables"},
		{name: "veth", run: host.ProbeVeth, hint: "Try: modprobe veth"},
		{name: "vxlan", run: host.ProbeVXLAN, hint: "Try: modprobe vxlan", optional: true},
		{name: "ipv6", run: host.ProbeIPv6, hint: "Pods have IPv4 only until the kernel speaks IPv6", optional: true},
	}
}

func isUnsupported(err error) bool {
	return errors.Is(err, router.ErrUnsupported) || errors.Is(err, host.ErrUnsupported)
}
