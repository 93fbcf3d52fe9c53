package wireguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"weft/router/host"
)

// Host is what the transport needs of the machine. *host.Host is the real one.
type Host interface {
	Link(ctx context.Context, name string) (host.Link, bool, error)
	Apply(ctx context.Context, changes []host.Change) error
	Do(fn func() error) error
	OpenEcho() (*host.Echoer, error)
}

var _ Host = (*host.Host)(nil)

// kernel is a device of the kernel's.
type kernel struct {
	host Host
	name string

	mu sync.Mutex // guards c, which is not made for several users
	c  *wgctrl.Client
}

var _ Device = (*kernel)(nil)

// Kernel is the kernel's device of a name. Nothing is touched yet.
func Kernel(h Host, name string) Device { return &kernel{host: h, name: name} }

// client opens the socket in the host's namespace when it is needed first.
func (k *kernel) client() (*wgctrl.Client, error) {
	if k.c != nil {
		return k.c, nil
	}
	err := k.host.Do(func() (err error) {
		k.c, err = wgctrl.New()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open WireGuard's netlink: %w", err)
	}
	return k.c, nil
}

func (k *kernel) Ensure(ctx context.Context, mtu int) error {
	now, exists, err := k.host.Link(ctx, k.name)
	if err != nil {
		return err
	}
	if exists && now.Kind != host.KindWireGuard {
		return fmt.Errorf("%s is a device of kind %q, not WireGuard's. Try: ip link del %s", k.name, now.Kind, k.name)
	}
	if exists && now.Up {
		return nil
	}
	return k.host.Apply(ctx, []host.Change{{Link: &host.Link{Name: k.name, Kind: host.KindWireGuard, MTU: mtu, Up: true}}})
}

func (k *kernel) Remove(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	if k.c != nil {
		errs = append(errs, k.c.Close())
		k.c = nil
	}
	return errors.Join(append(errs, k.host.Apply(ctx, []host.Change{{Op: host.Delete, Link: &host.Link{Name: k.name}}}))...)
}

func (k *kernel) State(context.Context) (State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, err := k.client()
	if err != nil {
		return State{}, err
	}
	d, err := c.Device(k.name)
	if errors.Is(err, os.ErrNotExist) {
		return State{}, fmt.Errorf("%w: %s", ErrNoDevice, k.name)
	}
	if err != nil {
		return State{}, fmt.Errorf("read %s: %w", k.name, err)
	}
	s := State{Private: Key(d.PrivateKey), Port: uint16(d.ListenPort), Peers: make(map[Key]Peer, len(d.Peers))}
	for _, p := range d.Peers {
		out := Peer{
			Preshared: Key(p.PresharedKey), Keepalive: p.PersistentKeepaliveInterval,
			Received: uint64(p.ReceiveBytes), Sent: uint64(p.TransmitBytes),
		}
		if !p.LastHandshakeTime.IsZero() && p.LastHandshakeTime.Unix() != 0 {
			out.Handshake = p.LastHandshakeTime
		}
		if p.Endpoint != nil {
			at := p.Endpoint.AddrPort()
			out.Endpoint = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
		}
		for _, n := range p.AllowedIPs {
			if q, ok := prefixOf(n); ok {
				out.Allowed = append(out.Allowed, q)
			}
		}
		s.Peers[Key(p.PublicKey)] = out
	}
	return s, nil
}

func (k *kernel) Configure(_ context.Context, c Config) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	client, err := k.client()
	if err != nil {
		return err
	}
	if err := client.ConfigureDevice(k.name, toConfig(c)); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w: %s", ErrNoDevice, k.name)
		}
		return fmt.Errorf("configure %s: %w", k.name, err)
	}
	return nil
}

// toConfig writes a configuration in the library's terms.
func toConfig(c Config) wgtypes.Config {
	var out wgtypes.Config
	if c.Private != nil {
		out.PrivateKey = (*wgtypes.Key)(c.Private)
	}
	if c.Port != nil {
		port := int(*c.Port)
		out.ListenPort = &port
	}
	for _, p := range c.Peers {
		q := wgtypes.PeerConfig{
			PublicKey: wgtypes.Key(p.Public), Remove: p.Remove, PresharedKey: (*wgtypes.Key)(p.Preshared),
			PersistentKeepaliveInterval: p.Keepalive,
		}
		if p.Endpoint.IsValid() {
			q.Endpoint = net.UDPAddrFromAddrPort(p.Endpoint)
		}
		for _, a := range p.Allowed {
			q.AllowedIPs = append(q.AllowedIPs, net.IPNet{
				IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen()),
			})
		}
		out.Peers = append(out.Peers, q)
	}
	return out
}

func prefixOf(n net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	if bits == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones), true
}
