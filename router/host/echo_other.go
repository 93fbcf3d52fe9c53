//go:build !linux

package host

import "net/netip"

// Echoer tests devices from end to end.
type Echoer struct{}

func (*Host) OpenEcho() (*Echoer, error)                            { return nil, errOther }
func (*Echoer) Send(int, netip.Addr, netip.Addr, uint16, int) error { return errOther }
func (*Echoer) Receive() []Echo                                     { return nil }
func (*Echoer) Close() error                                        { return nil }
