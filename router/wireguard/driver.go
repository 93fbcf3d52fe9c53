package wireguard

import (
	"context"
	"log/slog"
	"net/netip"

	"weft/router"
	"weft/router/host"
)

// The transports as routers and people see them.
const (
	Name         = "wireguard"
	KernelDevice = host.DevicePrefix + "wg"
	Port         = 6784 // UDP, of the kernel's
	Overhead4    = 60
	Overhead6    = 80

	UserName   = "wireguard-user"
	UserDevice = host.DevicePrefix + "wu"
)

// Driver makes the transport over the kernel's WireGuard. Its port is the same on every node, and the kernel's own: a peer
// is sought there, at the address where it is heard.
func Driver(h Host, private Key, d Directory, log *slog.Logger) router.Driver {
	driver := describe(Name, host.ProbeWireGuard, config{
		name: KernelDevice, host: h, device: Kernel(h, KernelDevice), private: private, port: Port, directory: d, log: log,
		endpoint: func(t router.Tunnel, r Remote) netip.AddrPort {
			if !t.Endpoint.IsValid() || r.Hidden {
				return netip.AddrPort{} // whoever can be dialled is dialled; a NAT opens no other port for us
			}
			return netip.AddrPortFrom(t.Endpoint.Addr().Unmap(), Port)
		},
	})
	driver.OwnPort = true
	return driver
}

// UserDriver makes the transport over a device that is not the kernel's, and whose datagrams go through the weft port.
func UserDriver(h Host, dev Device, private Key, port uint16, d Directory, log *slog.Logger) router.Driver {
	return describe(UserName, host.ProbeTUN, config{
		name: UserDevice, host: h, device: dev, private: private, port: port, directory: d, log: log,
		endpoint: func(t router.Tunnel, _ Remote) netip.AddrPort {
			return netip.AddrPortFrom(t.Endpoint.Addr().Unmap(), t.Endpoint.Port())
		},
	})
}

func describe(name string, probe host.Probe, c config) router.Driver {
	return router.Driver{
		Name: name, Device: c.name, Overhead4: Overhead4, Overhead6: Overhead6, Sealed: true, Persists: true,
		Probe: probe,
		Open:  func(context.Context) (router.Transport, error) { return open(c) },
	}
}
