package main

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"

	"weft/prog/control"
	"weft/router/host"
	"weft/router/wireguard"
	"weft/test/cluster"
	"weft/test/netlab"
)

// Names of the contenders, as the table shows them.
const (
	nameSleeve     = "sleeve"
	nameWireguard  = "wireguard-go"
	nameWeftVXLAN  = "weft vxlan"
	nameWeftUser   = "weft wireguard-user"
	nameWeftKernel = "weft wireguard"
	nameKernel     = "wireguard by hand"
	nameKernelNAT  = "wireguard, NAT by hand"
	nameVXLAN      = "vxlan by hand"
	nameVXLANNAT   = "vxlan, NAT by hand"
	nameGoNAT      = "wireguard-go, NAT by hand"
	namePlain      = "plain cable"
	nameOther      = "other sleeve"
)

// plain routes between the pods' subnets over the cable itself: what there is without a tunnel.
func (bd *bed) plain(context.Context) (*contender, error) {
	s := bd.site("plain")
	src, dst := s.pods()
	s.a.Route(behind(2), s.b.Addr4())
	s.b.Route(behind(1), s.a.Addr4())
	return &contender{name: namePlain, cable: s.cable, src: src, dst: dst, addr: dst.Addr4()}, nil
}

// vxlan is the kernel's, by hand: no filter, no check of sources.
func (bd *bed) vxlan(context.Context) (*contender, error) { return bd.byHand(nameVXLAN, "vxlan") }

// vxlanNAT is the same with one rule that masquerades what goes to the world, as pods that are to reach it need: with it the
// kernel follows every connection.
func (bd *bed) vxlanNAT(ctx context.Context) (*contender, error) {
	c, err := bd.byHand(nameVXLANNAT, "vxlannat")
	if err != nil {
		return nil, err
	}
	return c, masquerade(ctx, c)
}

// masquerade lets the pods of both ends reach the world.
func masquerade(ctx context.Context, c *contender) error {
	for _, p := range []netlab.Port{c.cable.A, c.cable.B} {
		machine, err := host.Open(p.Host.Path(), nil)
		if err != nil {
			return err
		}
		_, err = machine.Filter(ctx, host.Ruleset{
			Sets: []host.FilterSet{{Name: "pods", Type: "ipv4_addr", Interval: true, Elements: []string{"172.20.0.0/16"}}},
			Chains: []host.Chain{{Name: "world", Hook: host.Postrouting, Priority: 100, NAT: true, Rules: []string{
				`ip saddr @pods ip daddr != @pods masquerade fully-random`,
			}}},
		})
		if err := errors.Join(err, machine.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (bd *bed) byHand(name, at string) (*contender, error) {
	s := bd.site(at)
	src, dst := s.pods()
	end := func(h, far *netlab.Host, own, other string, remote netip.Prefix) {
		h.VXLAN(netlab.VXLAN{Name: "vx", ID: 42, Port: 4789, Local: h.Addr4(), Remote: far.Addr4(), MTU: tunnelMTU, Addr: own + "/24"})
		h.Route(remote, netip.MustParseAddr(other))
	}
	end(s.a, s.b, "172.20.0.1", "172.20.0.2", behind(2))
	end(s.b, s.a, "172.20.0.2", "172.20.0.1", behind(1))
	return &contender{name: name, cable: s.cable, src: src, dst: dst, addr: dst.Addr4()}, nil
}

// wireguardGo is the Go module's own program in all but name.
func (bd *bed) wireguardGo(ctx context.Context) (*contender, error) {
	return bd.module(ctx, nameWireguard, "wg")
}

// wireguardGoNAT is the same with the rule that pods need who are to reach the world.
func (bd *bed) wireguardGoNAT(ctx context.Context) (*contender, error) {
	c, err := bd.module(ctx, nameGoNAT, "wgnat")
	if err != nil {
		return nil, err
	}
	return c, masquerade(ctx, c)
}

func (bd *bed) module(ctx context.Context, name, at string) (*contender, error) {
	const port, device = 51820, "wg0"
	s := bd.site(at)
	src, dst := s.pods()
	c := &contender{name: name, cable: s.cable, src: src, dst: dst, addr: dst.Addr4()}
	var keys [2]*ecdh.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return nil, err
		}
	}
	ends := [2]*netlab.Host{s.a, s.b}
	for i, h := range ends {
		p := h.Command(bd.wireguard, "-device", device, "-mtu", fmt.Sprint(tunnelMTU), "-port", fmt.Sprint(port),
			"-private", hex.EncodeToString(keys[i].Bytes()), "-peer", hex.EncodeToString(keys[1-i].PublicKey().Bytes()),
			"-endpoint", ends[1-i].AddrPort4(port).String(), "-allowed", behind(2-i).String())
		if err := p.Start(); err != nil {
			return nil, err
		}
		if _, err := p.WaitOutput(ctx, "ready"); err != nil {
			return nil, err
		}
		h.DeviceUp(device)
		h.RouteDevice(behind(2-i), device)
		c.pids = append(c.pids, p.Pid())
	}
	return c, nil
}

// sleeve is weft with its encrypted transport: two daemons, two data planes, two pods.
func (bd *bed) sleeve(ctx context.Context) (*contender, error) {
	return bd.weft(ctx, nameSleeve, "sleeve", "sleeve", "--transport", "sleeve")
}

// otherSleeve is that of another build, to see what a change is worth.
func (bd *bed) otherSleeve(ctx context.Context) (*contender, error) {
	other := *bd
	other.programs.Weft = bd.other
	return other.weft(ctx, nameOther, "other", "sleeve", "--transport", "sleeve")
}

// weftVXLAN is weft on a cable that its operators trust.
func (bd *bed) weftVXLAN(ctx context.Context) (*contender, error) {
	return bd.weft(ctx, nameWeftVXLAN, "weftvx", "vxlan", "--trusted-subnets", "198.18.1.0/24")
}

// weftUser is weft with the same module in its data plane, behind the weft port.
func (bd *bed) weftUser(ctx context.Context) (*contender, error) {
	return bd.weft(ctx, nameWeftUser, "weftuser", "wireguard-user", "--transport", "wireguard-user,sleeve")
}

func (bd *bed) weft(ctx context.Context, name, at, transport string, args ...string) (*contender, error) {
	s := bd.site(at)
	a, b, src, dst, err := bd.pair(ctx, s, args...)
	if err != nil {
		return nil, err
	}
	c := &contender{name: name, cable: s.cable, src: src.Host, dst: dst.Host, addr: dst.Addrs[0]}
	for _, m := range []*cluster.Machine{a, b} {
		_, err := m.WaitFor(ctx, func(st control.Status) error {
			for _, p := range st.Peers {
				if p.Transport != transport {
					return fmt.Errorf("%s carries the packets: %s", p.Transport, p.Reason)
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if transport == nameSleeve || transport == wireguard.UserName {
			c.pids = append(c.pids, m.Daemon.Pid(), m.Wire())
		}
	}
	return c, nil
}
