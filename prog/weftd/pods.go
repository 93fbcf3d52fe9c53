package weftd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"weft/ipam"
	"weft/prog/control"
	"weft/router"
)

const (
	undoTime      = 5 * time.Second // for taking back what a failed request began
	defaultIfname = "eth0"
)

// Attach gives a namespace an interface and addresses.
func (d *daemon) Attach(ctx context.Context, r control.AttachRequest) (control.AttachReply, error) {
	n, err := d.current()
	if err != nil {
		return control.AttachReply{}, err
	}
	reply, err := n.attach(ctx, r)
	return reply, explain(err)
}

func (n *node) attach(ctx context.Context, r control.AttachRequest) (control.AttachReply, error) {
	id, err := namespaceID(r.Netns)
	if err != nil {
		return control.AttachReply{}, &control.Error{
			Code: control.NotFound, Message: "there is no namespace " + r.Netns, Cause: rootCause(err), Hint: "Try: ip netns list",
		}
	}
	// This thread's, which is at home: /proc/self is the first thread's, and that may be in a pod just now.
	if own, err := namespaceID("/proc/thread-self/ns/net"); err == nil && own == id {
		return control.AttachReply{}, &control.Error{
			Code: control.Conflict, Message: r.Netns + " is this machine's own network, not that of a pod",
			Hint: "The machine has its own pod address already. Try: weft status",
		}
	}
	r.Ifname = cmp.Or(r.Ifname, defaultIfname)
	if err := n.settle(&r); err != nil {
		return control.AttachReply{}, err
	}
	ctx, cancel := inTime(ctx, r.Timeout)
	defer cancel()
	before, existed := holderOf(n.ring.Claims(), r, id)
	switch {
	case existed && r.Container == "":
		r.Container = before.Container
	case r.Container == "":
		r.Container = containerName(r.Netns, id)
	}
	release, err := n.holds.take(ctx, control.Attached{Container: r.Container, Ifname: r.Ifname})
	if err != nil {
		return control.AttachReply{}, err
	}
	defer release()
	if other, ok := claimOf(n.ring.Claims(), r.Container, r.Ifname); ok {
		if at, err := namespaceID(other.NetNS); err == nil && at != id {
			return control.AttachReply{}, &control.Error{
				Code: control.Conflict, Message: fmt.Sprintf("another pod is attached as %s", r.Container),
				Cause: other.NetNS, Hint: "Choose another --name, or detach it first: weft detach " + other.NetNS,
			}
		}
		existed = true
	}
	claim, err := n.ring.Claim(ctx, ipam.Request{
		Container: r.Container, IfName: r.Ifname, NetNS: r.Netns, Pod: r.Pod, Address: r.IP,
		Network: r.Network, Aliases: strings.Join(r.Aliases, " "), Inode: id.ino, MTU: r.MTU, MAC: r.MAC,
	})
	if err != nil {
		return control.AttachReply{}, err
	}
	made, err := n.router.Attach(ctx, router.AttachRequest{
		Pod:   router.Pod{Name: r.Container, IfName: r.Ifname, V4: claim.V4, V6: claim.V6},
		NetNS: r.Netns, MTU: claim.MTU, MAC: claim.MAC,
	})
	if err != nil {
		if existed {
			return control.AttachReply{}, err
		}
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		_, released := n.ring.Release(undo, r.Container, r.Ifname)
		return control.AttachReply{}, errors.Join(err, released)
	}
	return control.AttachReply{
		Version: control.Version, Pools: n.pools, Ifname: made.IfName, HostIf: made.HostIf, MTU: made.MTU, Existed: existed,
		Addresses: valid(made.V4, made.V6), Gateways: valid(made.Gateway4, made.Gateway6), MAC: made.MAC, HostMAC: made.HostMAC,
	}, nil
}

// Detach takes back what Attach gave.
func (d *daemon) Detach(ctx context.Context, r control.DetachRequest) (control.DetachReply, error) {
	n, err := d.current()
	if err != nil {
		return control.DetachReply{}, err
	}
	reply, err := n.detach(ctx, r)
	return reply, explain(err)
}

func (n *node) detach(ctx context.Context, r control.DetachRequest) (control.DetachReply, error) {
	reply := control.DetachReply{Version: control.Version}
	for _, c := range detached(n.ring.Claims(), r) {
		release, err := n.holds.take(ctx, control.Attached{Container: c.Container, Ifname: c.IfName})
		if err != nil {
			return reply, err
		}
		released, err := n.takeBack(ctx, c)
		release()
		if err != nil {
			return reply, err
		}
		reply.Addresses = append(reply.Addresses, released...)
	}
	return reply, nil
}

// takeBack is for who holds the attachment.
func (n *node) takeBack(ctx context.Context, c ipam.Claim) (all []netip.Addr, err error) {
	if err := n.router.Detach(ctx, c.Container, c.IfName); err != nil {
		return nil, err
	}
	released, err := n.ring.Release(ctx, c.Container, c.IfName)
	for _, c := range released {
		all = append(all, addresses(c)...)
	}
	return all, err
}

// A namespace has many names: a file under /run/netns, any process in it, a path of the container runtime. Claims are found
// again under each, because they are compared by what the kernel calls it. A claim whose namespace is gone is found by
// the words that it was attached with.

// netnsPrefix begins the container's name of a namespace that has no name of its own.
const netnsPrefix = "netns-"

// namespace is what the kernel calls a namespace; as long as one exists no other is called so.
type namespace struct{ dev, ino uint64 }

func namespaceID(path string) (namespace, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return namespace{}, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return namespace{}, errors.New("no inode")
	}
	return namespace{uint64(st.Dev), st.Ino}, nil //nolint:unconvert // other systems count devices in 32 bits
}

// holds reports whether the claim is of the living namespace id.
func (id namespace) holds(c ipam.Claim) bool {
	if c.Container == id.container() {
		return true
	}
	at, err := namespaceID(c.NetNS)
	return err == nil && at == id && !strings.HasPrefix(c.Container, netnsPrefix)
}

// cannotHold reports, without a question to the kernel for each of hundreds of claims, that a claim is of another namespace:
// neither the words nor the namespace that it was made with are those of id at path.
func (id namespace) cannotHold(c ipam.Claim, path string) bool {
	return c.Inode != 0 && c.Inode != id.ino && c.NetNS != path
}

// container names a namespace after itself.
func (id namespace) container() string { return fmt.Sprintf("%s%d", netnsPrefix, id.ino) }

// containerName names the pod of a namespace that nobody named: as the file under /run/netns is called, else after the
// namespace.
func containerName(path string, id namespace) string {
	if name := netnsName(path); name != "" {
		return name
	}
	return id.container()
}

// netnsName is what `ip netns` calls the namespace behind a path; empty when it does not know it.
func netnsName(path string) string {
	dir, name := filepath.Split(filepath.Clean(path))
	if dir == "/run/netns/" || dir == "/var/run/netns/" {
		return name
	}
	return ""
}

// holderOf finds the claim of the namespace that r means, whatever it was called when it was attached.
func holderOf(claims []ipam.Claim, r control.AttachRequest, id namespace) (ipam.Claim, bool) {
	i := slices.IndexFunc(claims, func(c ipam.Claim) bool {
		return c.IfName == r.Ifname && (r.Container == "" || c.Container == r.Container) && !id.cannotHold(c, r.Netns) && id.holds(c)
	})
	if i < 0 {
		return ipam.Claim{}, false
	}
	return claims[i], true
}

func claimOf(claims []ipam.Claim, container, ifname string) (ipam.Claim, bool) {
	i := slices.IndexFunc(claims, func(c ipam.Claim) bool { return c.Container == container && c.IfName == ifname })
	if i < 0 {
		return ipam.Claim{}, false
	}
	return claims[i], true
}

// detached lists the claims that r gives up.
func detached(claims []ipam.Claim, r control.DetachRequest) []ipam.Claim {
	id, err := namespaceID(r.Netns)
	alive := r.Netns != "" && err == nil
	meant := func(c ipam.Claim) bool {
		switch {
		case r.Container != "":
			return c.Container == r.Container
		case alive && id.cannotHold(c, r.Netns) && c.Container != netnsName(r.Netns):
			return false
		case alive && id.holds(c):
			return true
		case r.Netns == "":
			return false
		}
		// Its words: but not when they mean another namespace today that has a claim of its own.
		if at, err := namespaceID(c.NetNS); err == nil && alive && at != id {
			return false
		}
		return c.NetNS == r.Netns || c.Container == netnsName(r.Netns)
	}
	return slices.DeleteFunc(slices.Clone(claims), func(c ipam.Claim) bool {
		return !meant(c) || r.Ifname != "" && c.IfName != r.Ifname
	})
}

// valid leaves out the addresses of a family that there is not.
func valid(all ...netip.Addr) []netip.Addr {
	return slices.DeleteFunc(all, func(a netip.Addr) bool { return !a.IsValid() })
}
