package weftd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"weft/prog/wire"
	"weft/router/host"
	"weft/router/sleeve"
)

// wireIdentity is what the wire may know of this node. A wire that is started gets handshake counters that no wire
// before it can have used.
func (n *node) wireIdentity(started bool) (wire.Identity, error) {
	epoch, err := n.state.wireEpoch(started)
	if err != nil {
		return wire.Identity{}, err
	}
	return wire.Identity{
		ID:           n.key.ID(),
		NoisePrivate: [32]byte(n.noise.Bytes()),
		Epoch:        noiseEpoch,
		Cluster:      n.member.cluster.ID(),
		Counter:      epoch * sleeve.CounterSpan,
	}, nil
}

// noiseEpoch counts the sleeve keys of this node; there has been no reason yet to make a second one.
const noiseEpoch = 1

// tunQueues is the number of lanes of the sleeve's device.
const tunQueues = 1

// equip opens what the wire has not got, with the daemon's rights, and hands it over.
func (n *node) equip(ctx context.Context, c *wire.Client) error {
	held := c.Hello().Held
	port := n.cfg.Listen.Port()
	onPort := func(a netip.AddrPort) bool { return a.Port() == port }
	if !slices.ContainsFunc(held.UDP, onPort) {
		conns, err := sleeve.ListenUDP(ctx, n.cfg.Listen)
		if err != nil {
			return portError("udp", n.cfg.Listen, "listen", err)
		}
		if err := give(conns, func(files []*os.File) error { return c.GiveUDP(ctx, files) }); err != nil {
			return fmt.Errorf("give UDP port to the wire: %w", err)
		}
	}
	if err := n.giveTCP(ctx, c, held.TCP); err != nil {
		return err
	}
	if held.TUN.Name == sleeve.Device {
		return nil
	}
	// Without the device the wire still carries what the daemons say to each other, and pods may have other transports.
	err := n.giveTUN(ctx, c)
	if errors.Is(err, host.ErrUnsupported) {
		n.log.Warn("no sleeve on this machine", "err", err)
		err = nil
	}
	return err
}

// giveTCP opens the weft port, and the second one where the operator wants it, unless the wire has just these.
func (n *node) giveTCP(ctx context.Context, c *wire.Client, held []netip.AddrPort) error {
	type door struct {
		at   netip.AddrPort
		flag string
	}
	doors := []door{{n.cfg.Listen, "listen"}}
	if n.cfg.RelayListen.IsValid() {
		doors = append(doors, door{n.cfg.RelayListen, "relay-listen"})
	}
	missing := len(held) != len(doors)
	for _, d := range doors {
		missing = missing || !slices.ContainsFunc(held, func(a netip.AddrPort) bool { return a.Port() == d.at.Port() })
	}
	if !missing {
		return nil
	}
	if len(held) > 0 { // they go first, or the port would be taken
		if err := c.GiveTCP(ctx, nil); err != nil {
			return fmt.Errorf("take TCP ports from the wire: %w", err)
		}
	}
	var listeners []*net.TCPListener
	for _, d := range doors {
		ln, err := listenAgain(ctx, d.at)
		if err != nil {
			for _, l := range listeners {
				_ = l.Close() // nothing came yet
			}
			return portError("tcp", d.at, d.flag, err)
		}
		listeners = append(listeners, ln)
	}
	if err := give(listeners, func(files []*os.File) error { return c.GiveTCP(ctx, files) }); err != nil {
		return fmt.Errorf("give TCP ports to the wire: %w", err)
	}
	return nil
}

// listenAgain bears a port that was given up a moment ago.
func listenAgain(ctx context.Context, at netip.AddrPort) (*net.TCPListener, error) {
	for began := time.Now(); ; {
		ln, err := listenTCP(ctx, at)
		if !errors.Is(err, syscall.EADDRINUSE) || time.Since(began) > portPatience {
			return ln, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(portAgain):
		}
	}
}

// giveTUN makes the sleeve's device and hands it over.
func (n *node) giveTUN(ctx context.Context, c *wire.Client) error {
	queues, off, err := n.host.OpenTUN(sleeve.Device, tunQueues, true)
	if err != nil {
		return err
	}
	tun := wire.TUN{Name: sleeve.Device, Offload: sleeve.Offload{Vnet: off.VnetHdr, TSO: off.TSO, USO: off.USO}}
	err = c.GiveTUN(ctx, tun, queues)
	for _, q := range queues {
		err = errors.Join(err, q.Close())
	}
	if err != nil {
		return fmt.Errorf("give TUN device to the wire: %w", err)
	}
	return nil
}

// mendTUN makes the sleeve's device anew when somebody has deleted it.
func (n *node) mendTUN(ctx context.Context) error {
	c, _ := n.link.current()
	if _, exists, err := n.host.Link(ctx, sleeve.Device); exists || err != nil || c == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, wireTellTime)
	defer cancel()
	err := n.giveTUN(ctx, c)
	switch {
	case err == nil:
		n.log.Warn("device was gone and is made anew", "device", sleeve.Device)
	case errors.Is(err, host.ErrUnsupported), errors.Is(err, wire.ErrLost):
		return nil
	}
	return err
}

// give passes duplicates of the sockets and closes the originals.
func give[S interface {
	File() (*os.File, error)
	Close() error
}](sockets []S, pass func([]*os.File) error) (err error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
	}()
	for _, s := range sockets {
		f, ferr := s.File()
		err = errors.Join(err, ferr, s.Close())
		if ferr == nil {
			files = append(files, f)
		}
	}
	if err != nil {
		return err
	}
	return pass(files)
}
