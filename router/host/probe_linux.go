package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Probe tries a feature by the real operation, in a network namespace made for it and thrown away. Its answer is nil, an
// error that wraps ErrUnsupported and says what would help, or another error when it cannot tell.
type Probe func(context.Context) error

// ProbeVeth makes a pair of veth devices.
func ProbeVeth(ctx context.Context) error {
	return probe(ctx, "veth devices", "Try: modprobe veth", func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "weft-p0"}, PeerName: "weft-p1"})
	})
}

// ProbeVXLAN makes a VXLAN device.
func ProbeVXLAN(ctx context.Context) error {
	return probe(ctx, "VXLAN devices", "Try: modprobe vxlan", func() error {
		return netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "weft-p0"}, VxlanId: 1, Port: 6785})
	})
}

// ProbeTUN makes a TUN device with several queues.
func ProbeTUN(ctx context.Context) error {
	return probe(ctx, "TUN devices", "Try: modprobe tun, or give the container "+tunPath, func() error {
		fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		ifr, err := unix.NewIfreq("weft-p0")
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	})
}

// ProbeFilter makes a table with a chain of each kind that weft needs.
func ProbeFilter(ctx context.Context) error {
	return probe(ctx, "nftables with NAT for family inet", "Try: modprobe nf_tables nft_masq nf_conntrack", func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "weft-p"})
		c.AddChain(&nftables.Chain{
			Table: t, Name: "nat", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting,
			Priority: nftables.ChainPriorityNATSource,
		})
		exprs, _, err := compileRule("ct state established masquerade fully-random", nil)
		if err != nil {
			return err
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: &nftables.Chain{Table: t, Name: "nat"}, Exprs: exprs})
		return c.Flush()
	})
}

// ProbeIPv6 opens an IPv6 socket.
func ProbeIPv6(ctx context.Context) error {
	return probe(ctx, "IPv6", "Try: sysctl net.ipv6.conf.all.disable_ipv6=0, or start the kernel without ipv6.disable=1",
		func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(lo); err != nil {
				return err
			}
			var lc net.ListenConfig
			l, err := lc.Listen(ctx, "tcp6", "[::1]:0")
			if err != nil {
				return err
			}
			return l.Close()
		})
}

// probe runs fn on a thread in a namespace of its own. The thread is never used again, and the namespace ends with it.
func probe(ctx context.Context, what, hint string, fn func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("make a namespace to try %s: %w", what, explain(err))
			return
		}
		done <- classify(what, hint, fn())
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("try %s: %w", what, ctx.Err())
	}
}

// classify tells a missing privilege, which says nothing about the kernel, from a missing feature.
func classify(what, hint string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("try %s: %w", what, explain(err))
	}
	for _, absent := range []unix.Errno{
		unix.EOPNOTSUPP, unix.ENOENT, unix.ENODEV, unix.ENXIO, unix.EAFNOSUPPORT,
		unix.EPROTONOSUPPORT, unix.EADDRNOTAVAIL, unix.ENOSYS, unix.ENOPROTOOPT,
	} {
		if errors.Is(err, absent) {
			return fmt.Errorf("%s: %w (%w). %s", what, ErrUnsupported, err, hint)
		}
	}
	return fmt.Errorf("try %s: %w", what, err)
}
