package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// watchBuffer is what a burst of changes may fill before events are lost; that some were is an event too.
const watchBuffer = 1 << 20

// Watch reports outside changes of what weft depends on, until ctx ends; then it closes the channel. The channel holds
// one event: a reader that is behind has missed nothing, because an event only says that the state is to be read anew.
func (h *Host) Watch(ctx context.Context) (<-chan Event, error) {
	// Deletions matter, and what comes up; addresses and routes of others come and go without our business.
	route, err := h.listen(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
		unix.RTNLGRP_TC)
	if err != nil {
		return nil, err
	}
	filter, err := h.listen(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		_ = route.Close()
		return nil, err
	}
	events := make(chan Event, 1)
	stop := context.AfterFunc(ctx, func() { // wakes the readers
		_ = route.Close()
		_ = filter.Close()
	})
	var readers sync.WaitGroup
	readers.Go(func() { follow(route, events, h.routeEvent) })
	readers.Go(func() { follow(filter, events, filterEvent) })
	go func() {
		readers.Wait()
		stop()
		_ = route.Close()
		_ = filter.Close()
		close(events)
	}()
	return events, nil
}

func (h *Host) listen(protocol int, groups ...uint) (*os.File, error) {
	var f *os.File
	err := h.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
		if err != nil {
			return err
		}
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, watchBuffer)
		}
		var mask uint32
		for _, g := range groups {
			mask |= 1 << (g - 1)
		}
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: mask}); err != nil {
			_ = unix.Close(fd)
			return err
		}
		f = os.NewFile(uintptr(fd), "netlink events")
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listen to netlink events: %w", explain(err))
	}
	return f, nil
}

// follow reads until the file is closed.
func follow(f *os.File, events chan<- Event, parse func(syscall.NetlinkMessage) (Event, bool)) {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			offer(events, Event{What: "lost"})
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			offer(events, Event{What: "lost"})
			continue
		}
		for _, m := range messages {
			if e, ok := parse(m); ok {
				offer(events, e)
			}
		}
	}
}

func offer(events chan<- Event, e Event) {
	select {
	case events <- e:
	default:
	}
}

func (h *Host) routeEvent(m syscall.NetlinkMessage) (Event, bool) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		attrs, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return Event{What: "lost"}, true
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.IFLA_IFNAME {
				name := strings.TrimRight(string(a.Value), "\x00")
				// Pods' veths come and go by our own hand; a new one must not make us read everything.
				ours := strings.HasPrefix(name, DevicePrefix) || name == GuestDevice ||
					strings.HasPrefix(name, VethPrefix) && m.Header.Type == unix.RTM_DELLINK
				return Event{What: "link", Name: name}, ours
			}
		}
	case unix.RTM_DELADDR:
		return Event{What: "address"}, true
	case unix.RTM_DELROUTE:
		return Event{What: "route"}, len(m.Data) > 5 && m.Data[5] == Protocol
	case unix.RTM_NEWROUTE: // another's route in the place of one of ours
		return Event{What: "route"}, m.Header.Flags&unix.NLM_F_REPLACE != 0 && len(m.Data) > 5 && m.Data[5] != Protocol
	case unix.RTM_DELRULE:
		return Event{What: "rule"}, true
	case unix.RTM_DELTFILTER, unix.RTM_DELQDISC:
		return Event{What: "gate"}, h.gateEvent(m.Header.Type, m.Data)
	}
	return Event{}, false
}

// filterEvent knows changes of weft's own table that could open it: whatever is deleted, and rules that are added. In all
// these messages the first attribute names the table.
func filterEvent(m syscall.NetlinkMessage) (Event, bool) {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES {
		return Event{}, false
	}
	what := "filter"
	switch m.Header.Type & 0xff {
	case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE:
		what = GuardGone
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELSET, unix.NFT_MSG_DELSETELEM:
	default:
		return Event{}, false
	}
	const header, attr = 4, 4 // struct nfgenmsg, struct nlattr
	if len(m.Data) < header+attr {
		return Event{}, false
	}
	b := m.Data[header:]
	size, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
	if kind != 1 || size < attr || size > len(b) {
		return Event{}, false
	}
	return Event{What: what}, strings.TrimRight(string(b[attr:size]), "\x00") == Table
}
