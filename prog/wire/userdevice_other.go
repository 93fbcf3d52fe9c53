//go:build !linux

package wire

import (
	wgconn "golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

func openUserDevice(fd int, _ wgconn.Bind, _ *device.Logger) (*device.Device, error) {
	closeFDs([]int{fd})
	return nil, ErrUnsupported
}
