package main

import (
	"context"
	"fmt"
	"net/netip"

	"weft/test/cluster"
	"weft/test/netlab"
)

// tunnelMTU is what weft leaves to a pod on a cable of 1500, and wireguard-go's default: the same for every tunnel here.
const tunnelMTU = 1420

// bed is the lab in which contenders stand side by side.
type bed struct {
	*netlab.Lab
	options
}

// site is where one contender stands: two machines on one cable, each site like the other. They do not share machines since
// a contender would see the others there: their addresses as paths to try, their devices as the path's MTU, their rules.
type site struct {
	a, b  *netlab.Host
	cable *netlab.Link
}

func (bd *bed) site(name string) site {
	s := site{a: bd.Host(name + "-a"), b: bd.Host(name + "-b")}
	s.cable = bd.Link(s.a.Port("eth0", "198.18.1.1/24"), s.b.Port("eth0", "198.18.1.2/24"))
	return s
}

// behind is the prefix of the pods at an end.
func behind(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 20, byte(n), 0}), 24)
}

// pods makes one pod at each end, by hand: a veth, a subnet and a default route. Between the ends nothing goes yet.
func (s site) pods() (src, dst *netlab.Host) {
	pod := func(h *netlab.Host, n int) *netlab.Host {
		h.Sysctl("net.ipv4.ip_forward", "1")
		p := h.Pod("1")
		k := h.Lab().Link(p.Port("eth0", fmt.Sprintf("172.20.%d.2/24", n)), h.Port("pod", fmt.Sprintf("172.20.%d.1/24", n)))
		k.SetMTU(tunnelMTU)
		p.DefaultVia(h.Prefixes()[len(h.Prefixes())-1].Addr())
		return p
	}
	return pod(s.a, 1), pod(s.b, 2)
}

// contender is a way from one pod to another.
type contender struct {
	name     string
	cable    *netlab.Link
	src, dst *netlab.Host
	addr     netip.Addr // of dst
	device   string     // of the kernel's WireGuard, if that carries the packets
	pids     []int      // whose CPU time is the price; none: the kernel pays, and nobody can tell
}

const (
	sinkPort  = 5001 // TCP
	blastPort = 5002 // UDP
)

// serve starts at the far pod what answers, and waits until packets pass.
func (bd *bed) serve(ctx context.Context, c *contender) error {
	tcp := c.dst.Command(bd.blast, "-tcp", "1", "-listen", fmt.Sprintf(":%d", sinkPort)).Quiet()
	udp := c.dst.Command(bd.blast, "-listen", fmt.Sprintf(":%d", blastPort)).Quiet()
	for _, p := range []*netlab.Cmd{tcp, udp} {
		if err := p.Start(); err != nil {
			return err
		}
		if _, err := p.WaitOutput(ctx, "listening"); err != nil {
			return err
		}
	}
	if err := c.src.WaitPing(ctx, c.addr); err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	return nil
}

// pair starts weft on both machines of a site and attaches a pod to each.
func (bd *bed) pair(ctx context.Context, s site, args ...string) (a, b *cluster.Machine, src, dst *cluster.Pod, err error) {
	a, b = cluster.On(s.a, bd.programs), cluster.On(s.b, bd.programs)
	token, err := a.Found(ctx, args...)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	if err := b.Up(append([]string{"--join", token}, args...)...); err != nil {
		return nil, nil, nil, nil, err
	}
	for _, m := range []*cluster.Machine{a, b} {
		if _, err := m.WaitTunnels(ctx, 1); err != nil {
			return nil, nil, nil, nil, err
		}
	}
	if src, err = a.Attach("1"); err != nil {
		return nil, nil, nil, nil, err
	}
	if dst, err = b.Attach("1"); err != nil {
		return nil, nil, nil, nil, err
	}
	return a, b, src, dst, nil
}
