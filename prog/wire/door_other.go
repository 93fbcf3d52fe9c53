//go:build !linux

package wire

import (
	"net"
	"net/netip"
)

// door takes the connections of one TCP port.
type door struct{ *net.TCPListener }

// newDoor takes ln over.
func newDoor(ln *net.TCPListener) (*door, error) { return &door{ln}, nil }

// accept waits for the next connection from an address that may come in, and closes all others.
func (d *door) accept(may func(netip.Addr) bool) (*net.TCPConn, error) {
	for {
		tc, err := d.AcceptTCP()
		if err != nil {
			return nil, err
		}
		if from, ok := tc.RemoteAddr().(*net.TCPAddr); !ok || may(from.AddrPort().Addr()) {
			return tc, nil
		}
		tc.Close()
	}
}
