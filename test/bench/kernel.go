package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"weft/router/host"
	"weft/router/wireguard"
	"weft/test/netlab"
)

// handDevice is the name of what is set up by hand.
const handDevice = "wg0"

// weftKernel is weft with the kernel's WireGuard.
func (bd *bed) weftKernel(ctx context.Context) (*contender, error) {
	if err := host.ProbeWireGuard(ctx); err != nil {
		return nil, err
	}
	c, err := bd.weft(ctx, nameWeftKernel, "weftwg", wireguard.Name, "--transport", "wireguard,sleeve")
	if err == nil {
		c.device = wireguard.KernelDevice
	}
	return c, err
}

// wireguardKernel is the kernel's, as its manual says: a device, a key each, one that both share, one prefix, one route.
func (bd *bed) wireguardKernel(ctx context.Context) (*contender, error) {
	return bd.kernelByHand(ctx, nameKernel, "wgkern")
}

// wireguardNAT is the same for pods that are to reach the world.
func (bd *bed) wireguardNAT(ctx context.Context) (*contender, error) {
	c, err := bd.kernelByHand(ctx, nameKernelNAT, "wgnat")
	if err != nil {
		return nil, err
	}
	return c, masquerade(ctx, c)
}

func (bd *bed) kernelByHand(ctx context.Context, name, at string) (*contender, error) {
	if err := host.ProbeWireGuard(ctx); err != nil {
		return nil, err
	}
	s := bd.site(at)
	src, dst := s.pods()
	var keys [2]wgtypes.Key
	for i := range keys {
		var err error
		if keys[i], err = wgtypes.GeneratePrivateKey(); err != nil {
			return nil, err
		}
	}
	shared, err := wgtypes.GenerateKey()
	if err != nil {
		return nil, err
	}
	port := wireguard.Port
	ends := [2]*netlab.Host{s.a, s.b}
	for i, h := range ends {
		h.WireGuard(handDevice, tunnelMTU, fmt.Sprintf("172.20.0.%d/32", i+1))
		allowed := behind(2 - i)
		err := h.Do(func() error {
			client, err := wgctrl.New()
			if err != nil {
				return err
			}
			defer client.Close() //nolint:errcheck // a socket that was read
			return client.ConfigureDevice(handDevice, wgtypes.Config{
				PrivateKey: &keys[i], ListenPort: &port,
				Peers: []wgtypes.PeerConfig{{
					PublicKey: keys[1-i].PublicKey(), PresharedKey: &shared,
					Endpoint:   net.UDPAddrFromAddrPort(ends[1-i].AddrPort4(wireguard.Port)),
					AllowedIPs: []net.IPNet{{IP: allowed.Addr().AsSlice(), Mask: net.CIDRMask(allowed.Bits(), 32)}},
				}},
			})
		})
		if err != nil {
			return nil, fmt.Errorf("set up %s on %s: %w", handDevice, h, err)
		}
		h.RouteDevice(allowed, handDevice)
	}
	return &contender{name: name, cable: s.cable, src: src, dst: dst, addr: dst.Addr4(), device: handDevice}, nil
}

// traits are what of a device of WireGuard's and of the route through it decides how packets travel.
type traits struct {
	Implementation wgtypes.DeviceType
	Port, Mark     int
	MTU            int // bytes
	Peers          int
	Preshared      bool // a key that both share
	Keepalive      time.Duration
	Endpoint       int  // port
	Allowed        bool // the far pod's address
	Routed         bool // the same, into the device and nowhere else
}

// compareDevices prints whether what weft set up is what one would set up by hand.
func compareDevices(ctx context.Context, out io.Writer, of, against *contender) error {
	var all [2]traits
	for i, c := range []*contender{of, against} {
		var err error
		if all[i], err = traitsOf(ctx, c); err != nil {
			return fmt.Errorf("read %s of %s: %w", c.device, c.name, err)
		}
	}
	word := "alike"
	if all[0] != all[1] {
		word = "DIFFERENT"
	}
	_, err := fmt.Fprintf(out, "device and route of %s and %s: %s\n  %+v\n  %+v\n", of.name, against.name, word, all[0], all[1])
	return err
}

func traitsOf(ctx context.Context, c *contender) (t traits, err error) {
	machine, err := host.Open(c.cable.A.Host.Path(), nil)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, machine.Close()) }()
	var d *wgtypes.Device
	err = machine.Do(func() error {
		client, err := wgctrl.New()
		if err != nil {
			return err
		}
		d, err = client.Device(c.device)
		return errors.Join(err, client.Close())
	})
	if err != nil {
		return t, err
	}
	link, _, err := machine.Link(ctx, c.device)
	if err != nil {
		return t, err
	}
	by, err := machine.DeviceTo(ctx, c.addr)
	if err != nil {
		return t, err
	}
	t = traits{Implementation: d.Type, Port: d.ListenPort, Mark: d.FirewallMark, MTU: link.MTU, Peers: len(d.Peers), Routed: by == c.device}
	for _, p := range d.Peers {
		t.Preshared, t.Keepalive = p.PresharedKey != wgtypes.Key{}, p.PersistentKeepaliveInterval
		if p.Endpoint != nil {
			t.Endpoint = p.Endpoint.Port
		}
		for _, n := range p.AllowedIPs {
			t.Allowed = t.Allowed || n.Contains(c.addr.AsSlice())
		}
	}
	return t, nil
}
