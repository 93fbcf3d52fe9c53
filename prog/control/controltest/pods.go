package controltest

import (
	"cmp"
	"context"
	"net/netip"
	"path"
	"slices"

	"weft/prog/control"
)

// Attach gives out 10.32.0.2, 10.32.0.3, ... and their linked IPv6 addresses.
func (b *Backend) Attach(_ context.Context, r control.AttachRequest) (control.AttachReply, error) {
	if err := b.begin("Attach"); err != nil {
		return control.AttachReply{}, err
	}
	defer b.mu.Unlock()
	if err := b.member(); err != nil {
		return control.AttachReply{}, err
	}
	if r.Container == "" {
		r.Container = path.Base(r.Netns)
	}
	reply := control.AttachReply{Version: control.Version, Ifname: "eth0", MTU: 1420}
	if r.Ifname != "" {
		reply.Ifname = r.Ifname
	}
	for _, c := range b.claims {
		if c.Netns == r.Netns && c.Ifname == reply.Ifname {
			reply.Addresses, reply.Existed = append(reply.Addresses, c.Address), true
		}
	}
	if reply.Existed {
		return reply, nil
	}
	v4 := r.IP
	if !v4.IsValid() && len(r.IPs) > 0 {
		v4 = r.IPs[0]
	}
	if !v4.IsValid() {
		v4 = netip.AddrFrom4([4]byte{10, 32, 0, byte(2 + len(b.claims)/2)})
	}
	tail := v4.As4()
	v6 := netip.AddrFrom16([16]byte{0xfd, 1, 12: tail[0], 13: tail[1], 14: tail[2], 15: tail[3]})
	for _, a := range []netip.Addr{v4, v6} {
		b.claims = append(b.claims, control.Claim{
			Address: a, Container: r.Container, Ifname: reply.Ifname, Netns: r.Netns,
			Pod: r.Pod, Created: Created,
		})
		reply.Addresses = append(reply.Addresses, a)
	}
	return reply, nil
}

// Detach takes them back.
func (b *Backend) Detach(_ context.Context, r control.DetachRequest) (control.DetachReply, error) {
	if err := b.begin("Detach"); err != nil {
		return control.DetachReply{}, err
	}
	defer b.mu.Unlock()
	reply := control.DetachReply{Version: control.Version}
	b.claims = slices.DeleteFunc(b.claims, func(c control.Claim) bool {
		gone := c.Netns == r.Netns && (r.Ifname == "" || c.Ifname == r.Ifname)
		if gone {
			reply.Addresses = append(reply.Addresses, c.Address)
		}
		return gone
	})
	return reply, nil
}

// IPList lists what is attached.
func (b *Backend) IPList(context.Context) (control.Claims, error) {
	if err := b.begin("IPList"); err != nil {
		return control.Claims{}, err
	}
	defer b.mu.Unlock()
	return control.Claims{Version: control.Version, Claims: slices.Clone(b.claims), Reserved: slices.Clone(b.reserved)}, nil
}

// IPClaim keeps 10.32.0.200, or what is asked for.
func (b *Backend) IPClaim(_ context.Context, r control.IPClaimRequest) (control.IPClaimReply, error) {
	if err := b.begin("IPClaim"); err != nil {
		return control.IPClaimReply{}, err
	}
	defer b.mu.Unlock()
	if err := b.member(); err != nil {
		return control.IPClaimReply{}, err
	}
	c := control.Claim{Address: r.Address, Container: cmp.Or(r.Name, "hand-1"), Created: Created}
	if !c.Address.IsValid() {
		c.Address = netip.MustParseAddr("10.32.0.200")
	}
	b.reserved = append(b.reserved, c)
	return control.IPClaimReply{Version: control.Version, Name: c.Container, Addresses: []netip.Addr{c.Address}}, nil
}

// IPRelease gives up what IPClaim kept.
func (b *Backend) IPRelease(_ context.Context, r control.IPReleaseRequest) (control.IPReleaseReply, error) {
	if err := b.begin("IPRelease"); err != nil {
		return control.IPReleaseReply{}, err
	}
	defer b.mu.Unlock()
	reply := control.IPReleaseReply{Version: control.Version}
	b.reserved = slices.DeleteFunc(b.reserved, func(c control.Claim) bool {
		meant := c.Container == r.What || c.Address.String() == r.What
		if meant {
			reply.Addresses = append(reply.Addresses, c.Address)
		}
		return meant
	})
	if len(reply.Addresses) == 0 {
		return reply, &control.Error{Code: control.NotFound, Message: "no address is kept by hand under " + r.What, Hint: "Try: weft ip list"}
	}
	return reply, nil
}

// IPRing lists Blocks.
func (b *Backend) IPRing(context.Context) (control.Ring, error) {
	if err := b.begin("IPRing"); err != nil {
		return control.Ring{}, err
	}
	defer b.mu.Unlock()
	return control.Ring{Version: control.Version, Blocks: b.Blocks}, nil
}
