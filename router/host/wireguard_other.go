//go:build !linux

package host

import "context"

// KindWireGuard is the kind of a kernel WireGuard device.
const KindWireGuard = "wireguard"

// ProbeWireGuard makes a WireGuard device.
func ProbeWireGuard(context.Context) error { return errOther }
