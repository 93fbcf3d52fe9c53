package cni

import (
	"context"
	"fmt"
	"io"
	"net/netip"

	"weft/prog/control"
)

// add gives the pod its interface. Whoever asks again gets the same again.
func add(ctx context.Context, c call, out io.Writer) error {
	ips, err := c.addresses()
	if err != nil {
		return err
	}
	aliases, err := c.aliases()
	if err != nil {
		return err
	}
	before, err := c.before()
	if err != nil {
		return err
	}
	reply, err := c.daemon.Attach(ctx, control.AttachRequest{
		Netns: c.netns, Container: c.container, Ifname: c.ifname, Pod: c.pod(), Network: c.conf.Name,
		IPs: ips, MAC: c.mac(), MTU: c.conf.MTU, Aliases: aliases, Timeout: control.Duration(waitTime),
	})
	if err != nil {
		return err
	}
	return c.print(out, c.attached(before, reply))
}

// del takes it back, whatever is left of it; see the package comment for why it does not need a daemon.
func del(ctx context.Context, c call, _ io.Writer) error {
	_, err := c.daemon.Detach(ctx, control.DetachRequest{Netns: c.netns, Container: c.container, Ifname: c.ifname})
	if isCode(err, control.Unreachable, control.NotReady) {
		fmt.Fprintf(c.stderr, "%v. What the container had is released when weft is back\n", err)
		return nil
	}
	return err
}

// check asks whether the interface is as ADD left it.
func check(ctx context.Context, c call, _ io.Writer) error { return c.check(ctx, false) }

func checkLent(ctx context.Context, c call, _ io.Writer) error { return c.check(ctx, true) }

func (c call) check(ctx context.Context, lent bool) error {
	before, err := c.before()
	if err != nil {
		return err
	}
	if before == nil {
		return refuse(codeConfig, "CHECK needs the result of ADD", "prevResult is missing")
	}
	var mine []netip.Addr
	for _, ip := range before.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			continue
		}
		// Addresses of other interfaces are those of other plugins in the list.
		if i := ip.Interface; !lent && i != nil && *i >= 0 && *i < len(before.Interfaces) {
			if dev := before.Interfaces[*i]; dev == nil || dev.Name != c.ifname || dev.Sandbox != c.netns {
				continue
			}
		}
		mine = append(mine, a.Unmap())
	}
	if len(mine) == 0 {
		return refuse(codeConfig, fmt.Sprintf("the result of ADD has no address of %s", c.ifname), "")
	}
	_, err = c.daemon.Check(ctx, control.CheckRequest{
		Netns: c.netns, Container: c.container, Ifname: c.ifname, Addresses: mine, Lent: lent,
	})
	return err
}

// collect releases what the runtime does not know any more.
func collect(ctx context.Context, c call, _ io.Writer) error {
	r := control.CollectRequest{Network: c.conf.Name}
	listed := make(map[control.Attached]bool, len(c.conf.Valid))
	for _, v := range c.conf.Valid {
		if a := (control.Attached{Container: v.ContainerID, Ifname: v.IfName}); !listed[a] {
			listed[a] = true
			r.Keep = append(r.Keep, a)
		}
	}
	reply, err := c.daemon.Collect(ctx, r)
	for _, a := range reply.Released {
		fmt.Fprintf(c.stderr, "released %s of %s\n", a.Ifname, a.Container)
	}
	return err
}

// status says whether ADD could work.
func status(ctx context.Context, c call, _ io.Writer) error {
	_, err := c.daemon.Ready(ctx)
	return err
}

// lend gives addresses to a main plugin.
func lend(ctx context.Context, c call, out io.Writer) error {
	ips, err := c.addresses()
	if err != nil {
		return err
	}
	reply, err := c.daemon.Lend(ctx, control.LendRequest{
		Netns: c.netns, Container: c.container, Ifname: c.ifname, Pod: c.pod(), Network: c.conf.Name, IPs: ips,
		Timeout: control.Duration(waitTime),
	})
	if err != nil {
		return err
	}
	return c.print(out, c.lent(reply))
}
