package host

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// dyingGroup marks links that are deleted by one request: "weft" in ASCII. Nobody else uses it, and within a network
	// namespace that has weft's links nobody has reason to.
	dyingGroup = 0x77656674
	// unplugAtOnce bounds how many: the kernel holds a lock over all network devices for 0.5 ms for each of them.
	unplugAtOnce = 32
)

// Cut ends the traffic of a pod whose connection is to be removed later: the host's routes to it go, and with them the
// right to send, by the reverse path filter of its veth. The pod must be out of the filter's sets already. Unlike the
// deletion of the link it waits for nothing in the kernel. addrs are those of the pod; zero ones are left out.
func (h *Host) Cut(ctx context.Context, id string, addrs ...netip.Addr) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	name := VethName(id)
	indexes := make(map[string]int, 1)
	for _, a := range addrs {
		if !a.IsValid() {
			continue
		}
		r := Route{Dst: netip.PrefixFrom(a, a.BitLen()), Link: name}
		if err := h.changeRoute(Delete, &r, indexes); err != nil {
			return fmt.Errorf("cut %s off: %w", a, explain(err))
		}
	}
	return nil
}

// Unplug removes the connections of pods, named by the host's ends (VethName), and returns when they are gone. That one
// went with its namespace is no error.
//
// The kernel deletes a link in two steps, each of which waits until no processor can still see it: 16 to 350 ms. It waits
// once for all links that one request deletes, so they go by their group.
func (h *Host) Unplug(ctx context.Context, names ...string) error {
	// A handle of its own: whoever asks the kernel for something else meanwhile does not wait for this.
	own, err := newHandle(h.ns)
	if err != nil {
		return err
	}
	defer own.Close()
	for some := range slices.Chunk(names, unplugAtOnce) {
		if err := ctx.Err(); err != nil {
			return err
		}
		var last netlink.Link
		n := 0
		for _, name := range some {
			l, err := own.LinkByName(name)
			if err == nil && len(some) > 1 {
				err = own.LinkSetGroup(l, dyingGroup)
			}
			switch {
			case err == nil:
				last = l
				n++
			case !gone(err):
				return fmt.Errorf("remove %s: %w", name, explain(err))
			}
		}
		switch n {
		case 0:
			continue
		case 1:
			err = own.LinkDel(last)
		default:
			err = deleteGroup(h, dyingGroup)
		}
		if err != nil && !gone(err) {
			return fmt.Errorf("remove %d connections of pods: %w", n, explain(err))
		}
	}
	return nil
}

// deleteGroup deletes all links of a group. That there is none is an error that gone knows.
func deleteGroup(h *Host, group uint32) error {
	return h.Do(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}
