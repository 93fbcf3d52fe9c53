package host

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

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
	on, err := h.endOf(VethName(id))
	if gone(err) {
		return nil // its routes went with it
	}
	if err != nil {
		return fmt.Errorf("cut off %s: %w", id, explain(err))
	}
	b := batch{fine: gone}
	for _, a := range addrs {
		if !a.IsValid() {
			continue
		}
		w := way{dst: netip.PrefixFrom(a, a.BitLen()), index: on.index, protocol: Protocol}
		if a.Is6() {
			w.metric = kernelMetric6
		}
		b.route(unix.RTM_DELROUTE, 0, w)
	}
	if err := h.talk.ask(&b, nil); err != nil {
		return fmt.Errorf("cut off %s: %w", id, explain(err))
	}
	return nil
}

// endOf asks for a link of the host.
func (h *Host) endOf(name string) (e end, err error) {
	var b batch
	b.look(name, 0)
	err = h.talk.ask(&b, func(_ int, _ uint16, data []byte) { e = parseEnd(data) })
	return e, err
}

// Unplug removes the connections of pods, named by the host's ends (VethName), and returns when they are gone. That one
// went with its namespace is no error.
//
// The kernel deletes a link in two steps, each of which waits until no processor can still see it: 16 to 350 ms. It waits
// once for all links that one request deletes, so they go by their group.
func (h *Host) Unplug(ctx context.Context, names ...string) error {
	// A talk of its own: whoever asks the kernel for something else meanwhile does not wait for this.
	own, err := talkIn(h.ns)
	if err != nil {
		return err
	}
	defer own.close() //nolint:errcheck // everything was answered
	for some := range slices.Chunk(names, unplugAtOnce) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := unplug(own, some); err != nil {
			return fmt.Errorf("remove %d connections of pods: %w", len(some), explain(err))
		}
	}
	return nil
}

func unplug(t *talk, names []string) error {
	remove := batch{fine: gone}
	remove.request(unix.RTM_DELLINK, 0, linkHeader(0, 0))
	if len(names) == 1 {
		remove.text(unix.IFLA_IFNAME, names[0])
		return t.ask(&remove, nil)
	}
	left := len(names)
	mark := batch{fine: func(err error) bool {
		if !gone(err) {
			return false
		}
		left--
		return true
	}}
	for _, name := range names {
		mark.request(unix.RTM_SETLINK, 0, linkHeader(0, 0))
		mark.text(unix.IFLA_IFNAME, name)
		mark.number(unix.IFLA_GROUP, dyingGroup)
	}
	if err := t.ask(&mark, nil); err != nil || left == 0 {
		return err
	}
	remove.number(unix.IFLA_GROUP, dyingGroup)
	return t.ask(&remove, nil)
}
