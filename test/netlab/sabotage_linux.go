package netlab

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What a person does to a machine by hand, and should not have.

// DeleteLink removes a network device of the host.
func (h *Host) DeleteLink(name string) {
	dev, err := h.nl.LinkByName(name)
	if err == nil {
		err = h.nl.LinkDel(dev)
	}
	h.lab.must(err, "delete %s on %s", name, h.name)
}

// DeleteDevices removes every network device of the host but those named in keep and those that the kernel does not let go.
// One that goes by itself meanwhile, as the end of a veth does whose other end dies with its namespace, is gone as well.
func (h *Host) DeleteDevices(keep ...string) {
	h.lab.must(func() error {
		devices, err := h.nl.LinkList()
		if err != nil {
			return fmt.Errorf("list devices: %w", err)
		}
		for _, d := range devices {
			if slices.Contains(keep, d.Attrs().Name) {
				continue
			}
			err := h.nl.LinkDel(d)
			if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) {
				return fmt.Errorf("delete %s: %w", d.Attrs().Name, err)
			}
		}
		return nil
	}(), "delete devices of %s", h.name)
}

// DeleteTables removes every nftables table of the host but the lab's own, as a flush of the ruleset does, and returns how
// many there were.
//
// One that its owner takes away meanwhile is gone as well: then the others are listed anew.
func (h *Host) DeleteTables() (n int) {
	const most = 100 // an owner that changes its table all the time is faster than we are only now and then
	var err error
	for range most {
		if n, err = h.deleteTables(); !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	h.lab.must(err, "delete tables on %s", h.name)
	return n
}

func (h *Host) deleteTables() (n int, err error) {
	conn, err := h.nft()
	if err != nil {
		return 0, err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return 0, fmt.Errorf("list tables: %w", err)
	}
	for _, t := range tables {
		if t.Name != tableName {
			conn.DelTable(t)
			n++
		}
	}
	return n, conn.Flush()
}

// Tables are the names of the host's nftables tables but the lab's own.
func (h *Host) Tables() []string {
	conn, err := h.nft()
	h.lab.must(err, "list tables of %s", h.name)
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyUnspecified)
	h.lab.must(err, "list tables of %s", h.name)
	var names []string
	for _, t := range tables {
		if t.Name != tableName {
			names = append(names, t.Name)
		}
	}
	return names
}

// DeleteRoutes removes every route of the main table that has no device and no gateway: unreachable, blackhole, prohibit.
func (h *Host) DeleteRoutes() int {
	n := 0
	h.lab.must(func() error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := h.nl.RouteList(nil, family)
			if err != nil {
				return fmt.Errorf("list routes: %w", err)
			}
			for _, r := range routes {
				if r.Type == unix.RTN_UNICAST || r.Dst == nil {
					continue
				}
				if err := h.nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("delete route %v: %w", r, err)
				}
				n++
			}
		}
		return nil
	}(), "delete routes on %s", h.name)
	return n
}

// SendDevice puts a whole IP packet into a device of the host, past its routes and its firewall, as root can.
func (h *Host) SendDevice(device string, packet []byte) error {
	hd, ok := parseIP(packet)
	if !ok {
		return errors.New("send packet: not an IP packet")
	}
	dev, err := h.nl.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find %s on %s: %w", device, h.name, err)
	}
	kind := uint16(unix.ETH_P_IP)
	if hd.Dst.Is6() {
		kind = unix.ETH_P_IPV6
	}
	return h.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		defer unix.Close(fd)
		to := &unix.SockaddrLinklayer{Protocol: htons(kind), Ifindex: dev.Attrs().Index}
		if err := unix.Sendto(fd, packet, 0, to); err != nil {
			return fmt.Errorf("send by %s: %w", device, err)
		}
		return nil
	})
}
