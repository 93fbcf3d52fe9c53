package weftd

import (
	"context"
	"errors"
	"net/netip"

	"weft/ipam"
	"weft/plugin/docker"
	"weft/prog/control"
	"weft/router"
	"weft/router/host"
)

// dockerIfname is the interface that claims of Docker's containers are for. What it is called in the container is up to
// dockerd, and a claim is made before anybody knows.
const dockerIfname = "eth"

// serveDocker answers dockerd for as long as the daemon lives. Before there is a node it is told so.
func (d *daemon) serveDocker(ctx context.Context) error {
	p, err := docker.New(docker.Config{
		Node: dockerNode{d}, Store: stateBook{d.state}, Log: d.log,
	})
	if err != nil {
		return err
	}
	return p.Run(ctx)
}

// stateBook keeps the plugin's book in the state directory.
type stateBook struct{ state *stateDir }

func (b stateBook) Load() ([]byte, error)  { return b.state.Load(fileDocker) }
func (b stateBook) Save(text []byte) error { return b.state.Save(fileDocker, text) }

// dockerNode is the node as Docker's plugin sees it.
type dockerNode struct{ d *daemon }

var _ docker.Node = dockerNode{}

func (n dockerNode) Pools(context.Context) ([]netip.Prefix, error) {
	node, err := n.d.current()
	if err != nil {
		return nil, err
	}
	return node.pools, nil
}

func (n dockerNode) Claim(ctx context.Context, name string, addr netip.Addr) (docker.Lease, error) {
	node, err := n.d.current()
	if err != nil {
		return docker.Lease{}, err
	}
	c, err := node.ring.Claim(ctx, ipam.Request{Container: name, IfName: dockerIfname, Address: addr})
	if err != nil {
		return docker.Lease{}, explain(err)
	}
	return docker.Lease{Name: name, V4: c.V4, V6: c.V6}, nil
}

func (n dockerNode) Leases(context.Context) ([]docker.Lease, error) {
	node, err := n.d.current()
	if err != nil {
		return nil, err
	}
	var all []docker.Lease
	for _, c := range node.ring.Claims() {
		if c.IfName == dockerIfname {
			all = append(all, docker.Lease{Name: c.Container, V4: c.V4, V6: c.V6})
		}
	}
	return all, nil
}

func (n dockerNode) Release(ctx context.Context, name string) error {
	node, err := n.d.current()
	if err != nil {
		return err
	}
	_, err = node.detach(ctx, control.DetachRequest{Container: name, Ifname: dockerIfname})
	return explain(err)
}

func (n dockerNode) Connect(ctx context.Context, name, mac string) (docker.Cable, error) {
	node, err := n.d.current()
	if err != nil {
		return docker.Cable{}, err
	}
	release, err := node.holds.take(ctx, control.Attached{Container: name, Ifname: dockerIfname})
	if err != nil {
		return docker.Cable{}, err
	}
	defer release()
	c, ok := claimOf(node.ring.Claims(), name, dockerIfname)
	if !ok {
		return docker.Cable{}, errors.New("the container's address was given back meanwhile. Start it again")
	}
	if err := letForward(ctx); err != nil {
		return docker.Cable{}, err
	}
	pod := router.Pod{Name: name, IfName: dockerIfname, V4: c.V4, V6: c.V6}
	made, err := node.router.Attach(ctx, router.AttachRequest{Pod: pod, MAC: mac})
	if err != nil {
		return docker.Cable{}, explain(err)
	}
	return docker.Cable{Link: host.LooseName(name + "/" + dockerIfname), V6: made.V6.IsValid()}, nil
}

func (n dockerNode) Disconnect(ctx context.Context, name string) error {
	node, err := n.d.current()
	if err != nil {
		return err
	}
	release, err := node.holds.take(ctx, control.Attached{Container: name, Ifname: dockerIfname})
	if err != nil {
		return err
	}
	defer release()
	return explain(node.router.Detach(ctx, name, dockerIfname))
}

func (n dockerNode) Connected(ctx context.Context, name string) (bool, error) {
	_, there, err := n.d.host.Link(ctx, host.VethName(name+"/"+dockerIfname))
	return there, err
}

func (n dockerNode) Arrange(ctx context.Context, a docker.Arrangement) error {
	node, err := n.d.current()
	if err != nil {
		return err
	}
	return explain(node.segments.arrange(ctx, a))
}
