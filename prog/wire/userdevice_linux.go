package wire

import (
	"fmt"

	wgconn "golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// openUserDevice starts wireguard-go on a TUN device's descriptor, which becomes its own.
func openUserDevice(fd int, b wgconn.Bind, log *device.Logger) (*device.Device, error) {
	t, name, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		closeFDs([]int{fd})
		return nil, fmt.Errorf("take the TUN device: %w", err)
	}
	d := device.NewDevice(t, b, log)
	if err := d.Up(); err != nil {
		d.Close()
		return nil, fmt.Errorf("start WireGuard on %s: %w", name, err)
	}
	return d, nil
}
