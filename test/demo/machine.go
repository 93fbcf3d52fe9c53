package main

import (
	"context"
	"net/netip"

	"weft/prog/control"
	"weft/test/cluster"
	"weft/test/netlab"
)

// machine is one host with its daemon, and what the demo remembers of it.
type machine struct {
	*cluster.Machine
	overlay []netip.Addr // its own addresses in the container network
	pods    []*cluster.Pod
}

// waitReady waits until the daemon is a member among so many that are alive.
func (m *machine) waitReady(ctx context.Context, members int) (control.Status, error) {
	st, err := m.WaitReady(ctx, members)
	m.overlay = st.Node.Overlay
	return st, err
}

// attach makes a pod and connects it.
func (m *machine) attach(name string) error {
	p, err := m.Attach(name)
	if err == nil {
		m.pods = append(m.pods, p)
	}
	return err
}

// end is somebody who talks and is talked to.
type end struct {
	host  *netlab.Host
	name  string
	addrs []netip.Addr
	pod   bool
}
