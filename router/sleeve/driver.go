package sleeve

import (
	"context"

	"weft/router"
)

// The sleeve as routers and people see it.
const (
	Name      = "sleeve"
	Device    = "weft-sl"
	Overhead4 = 60 // 20 IPv4 + 8 UDP + 32 ours
	Overhead6 = 80
)

// Wire is the process that runs the Engine, seen from the daemon.
type Wire interface {
	SetTunnels(ctx context.Context, tunnels []router.Tunnel) error
	Links(ctx context.Context) ([]router.Link, error)
}

// Driver makes the sleeve's transport over a running wire. Probe says whether this machine can have the TUN device.
func Driver(wire Wire, probe func(context.Context) error) router.Driver {
	return router.Driver{
		Name: Name, Device: Device, Overhead4: Overhead4, Overhead6: Overhead6, Sealed: true, Checks: true,
		Probe: probe,
		Open:  func(context.Context) (router.Transport, error) { return &transport{wire: wire}, nil },
	}
}

var _ router.Transport = (*transport)(nil)

// transport forwards to the wire, which keeps the state: it must survive the daemon.
type transport struct{ wire Wire }

func (t *transport) Apply(ctx context.Context, want []router.Tunnel) error {
	return t.wire.SetTunnels(ctx, want)
}

// Links leaves out peers that the wire knows and that have no tunnel here; that is the router's to match.
func (t *transport) Links(ctx context.Context) ([]router.Link, error) { return t.wire.Links(ctx) }

// Close leaves the tunnels: the wire and its sessions outlive the daemon on purpose.
func (t *transport) Close() error { return nil }
