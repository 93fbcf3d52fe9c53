//go:build !linux

package wire

import "net"

// asksForData is not available here: all connections are weftd's.
func asksForData(*net.TCPConn) bool { return false }
