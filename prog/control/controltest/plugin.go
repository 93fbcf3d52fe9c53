package controltest

import (
	"context"
	"net/netip"
	"slices"

	"weft/prog/control"
)

// Check finds what Attach made.
func (b *Backend) Check(_ context.Context, r control.CheckRequest) (control.CheckReply, error) {
	reply := control.CheckReply{Version: control.Version}
	if err := b.begin("Check"); err != nil {
		return reply, err
	}
	defer b.mu.Unlock()
	if !slices.ContainsFunc(b.claims, func(c control.Claim) bool { return c.Container == r.Container && c.Ifname == r.Ifname }) {
		return reply, &control.Error{Code: control.NotFound, Message: "there is no attachment " + r.Ifname + " of " + r.Container}
	}
	return reply, nil
}

// Lend gives out what Attach would, in a /16 whose first address is the gateway.
func (b *Backend) Lend(ctx context.Context, r control.LendRequest) (control.LendReply, error) {
	reply := control.LendReply{Version: control.Version}
	if err := b.Fail["Lend"]; err != nil {
		return reply, err
	}
	ip := netip.Addr{}
	if len(r.IPs) > 0 {
		ip = r.IPs[0]
	}
	a, err := b.Attach(ctx, control.AttachRequest{Netns: r.Netns, Container: r.Container, Ifname: r.Ifname, Pod: r.Pod, IP: ip})
	if err != nil {
		return reply, err
	}
	for _, addr := range a.Addresses {
		p := netip.PrefixFrom(addr, addr.BitLen()-16)
		reply.Addresses, reply.Gateways = append(reply.Addresses, p), append(reply.Gateways, p.Masked().Addr().Next())
	}
	reply.Existed = a.Existed
	return reply, nil
}

// Collect releases all claims that are not kept, whatever their network.
func (b *Backend) Collect(_ context.Context, r control.CollectRequest) (control.CollectReply, error) {
	reply := control.CollectReply{Version: control.Version}
	if err := b.begin("Collect"); err != nil {
		return reply, err
	}
	defer b.mu.Unlock()
	b.claims = slices.DeleteFunc(b.claims, func(c control.Claim) bool {
		a := control.Attached{Container: c.Container, Ifname: c.Ifname}
		gone := !slices.Contains(r.Keep, a)
		if gone && !slices.Contains(reply.Released, a) {
			reply.Released = append(reply.Released, a)
		}
		return gone
	})
	return reply, nil
}

// Ready is what Have says.
func (b *Backend) Ready(context.Context) (control.ReadyReply, error) {
	reply := control.ReadyReply{Version: control.Version}
	if err := b.begin("Ready"); err != nil {
		return reply, err
	}
	defer b.mu.Unlock()
	return reply, b.member()
}
