//go:build !linux

package control

import (
	"errors"
	"net"
)

// callerOf is not supported on this system, and a caller who is not known may do nothing.
func callerOf(*net.UnixConn) (caller, error) {
	return caller{}, errors.New("read peer credentials: not supported on this system")
}

// ended is not known on this system.
func ended(int) bool { return false }
