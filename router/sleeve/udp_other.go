//go:build !linux

package sleeve

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"weft/router"
)

// ListenUDP is not available here.
func ListenUDP(context.Context, netip.AddrPort) ([]*net.UDPConn, error) {
	return nil, fmt.Errorf("listen on UDP: %w", router.ErrUnsupported)
}
