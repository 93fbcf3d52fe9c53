package weftd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/ipam"
	"weft/ipam/space"
	"weft/prog/control"
	"weft/router/host"
)

// What the plugins of container runtimes ask for. Runtimes ask twice, for two things at once, for what is gone, and again
// after either side was killed; so everything here may be repeated, and one attachment is worked on by one request at a time.

// holds lets one request at a time work on an attachment: the claim and the interface belong together.
type holds struct {
	mu   sync.Mutex
	busy map[control.Attached]chan struct{} // closed when its holder is done
}

// take waits for the attachment and returns what lets it go.
func (h *holds) take(ctx context.Context, a control.Attached) (release func(), err error) {
	for {
		h.mu.Lock()
		other, busy := h.busy[a]
		if !busy {
			if h.busy == nil {
				h.busy = make(map[control.Attached]chan struct{})
			}
			mine := make(chan struct{})
			h.busy[a] = mine
			h.mu.Unlock()
			return func() {
				h.mu.Lock()
				delete(h.busy, a)
				h.mu.Unlock()
				close(mine)
			}, nil
		}
		h.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, &control.Error{
				Code: control.Timeout, Message: fmt.Sprintf("another request for %s of %s is at work", a.Ifname, a.Container),
				Hint: "Try again in a moment",
			}
		}
	}
}

// inTime is as long as the caller waits, when that is less than the server does.
func inTime(ctx context.Context, d control.Duration) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Duration(d))
}

// leastMTU is what IPv6 demands of every link.
const leastMTU = 1280

// settle checks what a request wants beyond a namespace, and makes one address of its list: IPv4 and IPv6 addresses are
// linked, so each names both.
func (n *node) settle(r *control.AttachRequest) error {
	addr, err := n.wanted(append([]netip.Addr{r.IP}, r.IPs...))
	if err != nil {
		return err
	}
	r.IP = addr
	if most := n.router.Status().PodMTU; r.MTU != 0 && (r.MTU < leastMTU || most != 0 && r.MTU > most) {
		return &control.Error{
			Code: control.Usage, Message: fmt.Sprintf("an MTU of %d does not fit", r.MTU),
			Cause: fmt.Sprintf("it may be %d to %d here", leastMTU, most), Hint: "Leave it out: weft finds the largest that fits",
		}
	}
	if r.MAC == "" {
		return nil
	}
	mac, err := net.ParseMAC(r.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || slices.Equal(mac, make(net.HardwareAddr, 6)) {
		return &control.Error{
			Code: control.Usage, Message: fmt.Sprintf("%q is no MAC address for an interface", r.MAC), Hint: "One such as 02:00:5e:10:00:07 is",
		}
	}
	r.MAC = mac.String()
	return nil
}

// wanted makes the one IPv4 address that all of list mean; zero when nothing is asked for.
func (n *node) wanted(list []netip.Addr) (one netip.Addr, err error) {
	for _, a := range list {
		if !a.IsValid() {
			continue
		}
		v4 := a.Unmap()
		if twin, ok := space.Unlinked(n.member.cluster.Linked6, v4); ok {
			v4 = twin
		}
		if one.IsValid() && one != v4 {
			return netip.Addr{}, &control.Error{
				Code: control.Usage, Message: fmt.Sprintf("%s and %s are not one pod's", one, a),
				Cause: "a pod has one IPv4 address and the IPv6 address that is linked with it", Hint: "Ask for one of them",
			}
		}
		one = v4
	}
	return one, nil
}

// Check says what an attachment lacks.
func (d *daemon) Check(ctx context.Context, r control.CheckRequest) (control.CheckReply, error) {
	n, err := d.current()
	if err != nil {
		return control.CheckReply{}, err
	}
	return control.CheckReply{Version: control.Version}, explain(n.check(ctx, r))
}

func (n *node) check(ctx context.Context, r control.CheckRequest) error {
	c, ok := claimOf(n.ring.Claims(), r.Container, r.Ifname)
	if !ok {
		return &control.Error{
			Code: control.NotFound, Message: fmt.Sprintf("%s of %s is not attached", r.Ifname, r.Container),
			Hint: "Attach it again: most runtimes do by making the container anew",
		}
	}
	broken := func(err error) error {
		return &control.Error{
			Code: control.Conflict, Message: fmt.Sprintf("the connection of %s is not whole", r.Container),
			Cause: err.Error(), Hint: "Make the container anew",
		}
	}
	if !r.Lent && !sameNetns(r.Netns, c.NetNS) {
		return broken(fmt.Errorf("%q is not the namespace that it was attached in, %s", r.Netns, c.NetNS))
	}
	have := addresses(c)
	if n.host.IPv6() != nil {
		have = slices.DeleteFunc(have, netip.Addr.Is6)
	}
	for _, a := range r.Addresses {
		if !slices.Contains(have, a) {
			return broken(fmt.Errorf("%s is not its address; it has %v", a, have))
		}
	}
	if r.Lent {
		return nil
	}
	v := host.Veth{ID: c.Container + "/" + c.IfName, NetNS: c.NetNS, IfName: c.IfName}
	for _, a := range have {
		if a.Is4() {
			v.V4 = a
		} else {
			v.V6 = a
		}
	}
	if err := n.host.Plugged(ctx, v); err != nil {
		return broken(err)
	}
	return nil
}

// sameNetns reports whether two paths name one namespace, without opening either: who may look need not be root, and could
// name a pipe.
func sameNetns(a, b string) bool {
	at, err1 := namespaceID(a)
	to, err2 := namespaceID(b)
	return err1 == nil && err2 == nil && at == to
}

// Lend gives addresses for an interface that somebody else makes.
func (d *daemon) Lend(ctx context.Context, r control.LendRequest) (control.LendReply, error) {
	n, err := d.current()
	if err != nil {
		return control.LendReply{}, err
	}
	reply, err := n.lend(ctx, r)
	return reply, explain(err)
}

func (n *node) lend(ctx context.Context, r control.LendRequest) (control.LendReply, error) {
	reply := control.LendReply{Version: control.Version, Pools: n.pools}
	gateway, ok := n.ring.HostAddress()
	if !ok {
		return reply, &control.Error{
			Code: control.NotReady, Message: "this machine has no pod address of its own yet", Hint: "Try again in a moment",
		}
	}
	addr, err := n.wanted(r.IPs)
	if err != nil {
		return reply, err
	}
	ctx, cancel := inTime(ctx, r.Timeout)
	defer cancel()
	release, err := n.holds.take(ctx, control.Attached{Container: r.Container, Ifname: r.Ifname})
	if err != nil {
		return reply, err
	}
	defer release()
	_, reply.Existed = claimOf(n.ring.Claims(), r.Container, r.Ifname)
	req := ipam.Request{
		Container: r.Container, IfName: r.Ifname, NetNS: r.Netns, Pod: r.Pod, Network: lentPrefix + r.Network, Address: addr,
	}
	if id, err := namespaceID(r.Netns); err == nil {
		req.Inode = id.ino
	}
	c, err := n.ring.Claim(ctx, req)
	if err != nil {
		return reply, err
	}
	blocks := n.ring.Blocks()[n.key.ID()]
	for i, a := range addresses(c) {
		gw := addresses(gateway)[i]
		reply.Addresses = append(reply.Addresses, netip.PrefixFrom(a, bitsWith(blocks, a, gw)))
		reply.Gateways = append(reply.Gateways, gw)
	}
	return reply, nil
}

// bitsWith is the length of the prefix that holds an address and its gateway: that of this node's block when it does.
func bitsWith(blocks []netip.Prefix, addr, gateway netip.Addr) int {
	for _, b := range blocks {
		if b.Contains(addr) && b.Contains(gateway) {
			return b.Bits()
		}
	}
	bits := addr.BitLen()
	for bits > 0 && !netip.PrefixFrom(addr, bits).Masked().Contains(gateway) {
		bits--
	}
	return bits
}

// Collect releases what a runtime has forgotten.
func (d *daemon) Collect(ctx context.Context, r control.CollectRequest) (control.CollectReply, error) {
	n, err := d.current()
	if err != nil {
		return control.CollectReply{}, err
	}
	reply := control.CollectReply{Version: control.Version}
	if r.Network == "" {
		return reply, &control.Error{Code: control.Usage, Message: "of which network the rest is to be released was not said"}
	}
	keep := make(map[control.Attached]bool, len(r.Keep))
	for _, a := range r.Keep {
		keep[a] = true
	}
	var errs []error
	for _, c := range n.ring.Claims() {
		a := control.Attached{Container: c.Container, Ifname: c.IfName}
		if strings.TrimPrefix(c.Network, lentPrefix) != r.Network || keep[a] {
			continue
		}
		if _, err := n.detach(ctx, control.DetachRequest{Container: a.Container, Ifname: a.Ifname}); err != nil {
			errs = append(errs, err)
			continue
		}
		reply.Released = append(reply.Released, a)
	}
	return reply, explain(errors.Join(errs...))
}

// Ready says why no pod can be attached.
func (d *daemon) Ready(ctx context.Context) (control.ReadyReply, error) {
	reply := control.ReadyReply{Version: control.Version}
	s, err := d.Status(ctx)
	if err == nil && s.Node.State != control.NodeReady {
		err = &control.Error{
			Code: control.NotReady, Message: "this node is " + s.Node.State + " and cannot attach pods", Cause: s.Node.Reason, Hint: "Try: weft status",
		}
	}
	return reply, err
}
