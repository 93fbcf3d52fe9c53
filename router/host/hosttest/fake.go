// Package hosttest stands in for the kernel in tests. Host keeps links, addresses, routes, rules, neighbours, sysctls and
// rule sets in memory and records each change, so that a test can compare what was done, and in which order. NS makes
// real network namespaces for tests that have the rights. It decides nothing, and checks only what the kernel would.
package hosttest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/router/host"
)

// Host is a recording fake of *host.Host. The fields may be set before use; afterwards only through methods, which may be
// called from several goroutines.
type Host struct {
	NoIPv6 error                     // what IPv6 answers
	Fail   func(change string) error // asked before each change, may be nil

	mu         sync.Mutex
	state      host.Snapshot
	neighbours []host.Neighbour
	sent       map[string]map[string]time.Duration
	filter     map[string]host.Ruleset
	log        []string
	watchers   []chan host.Event
}

// New makes a machine with loopback and the given sysctls.
func New(sysctls map[string]string) *Host {
	h := &Host{filter: make(map[string]host.Ruleset)}
	h.state.Links = []host.Link{{Name: "lo", Index: 1, MTU: 65536, Up: true}}
	h.state.Sysctls = maps.Clone(sysctls)
	if h.state.Sysctls == nil {
		h.state.Sysctls = map[string]string{}
	}
	return h
}

// OpenEcho has no sockets to give.
func (h *Host) OpenEcho() (*host.Echoer, error) { return nil, host.ErrUnsupported }

// AddLink changes the machine from outside, unrecorded, as AddAddress and AddRoute do.
func (h *Host) AddLink(l host.Link) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l.Index = len(h.state.Links) + 1
	h.state.Links = append(h.state.Links, l)
}

// AddAddress gives the machine an address.
func (h *Host) AddAddress(a host.Address) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state.Addresses = append(h.state.Addresses, a)
}

// AddRoute gives the machine a route.
func (h *Host) AddRoute(r host.Route) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state.Routes = append(h.state.Routes, r)
}

// DropLink removes a device with its routes, from outside, and tells the watchers.
func (h *Host) DropLink(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deleteLink(name)
	h.tell(host.Event{What: "link", Name: name})
}

// Tell sends an event to the watchers.
func (h *Host) Tell(e host.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tell(e)
}

func (h *Host) tell(e host.Event) {
	for _, w := range h.watchers {
		select {
		case w <- e:
		default:
		}
	}
}

// Log returns the changes since the last call.
func (h *Host) Log() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	log := h.log
	h.log = nil
	return log
}

// Ruleset returns the last rule set of an owner.
func (h *Host) Ruleset(owner string) host.Ruleset {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.filter[owner]
}

func (h *Host) record(change string) error {
	if h.Fail != nil {
		if err := h.Fail(change); err != nil {
			return fmt.Errorf("%s: %w", change, err)
		}
	}
	h.log = append(h.log, change)
	return nil
}

// IPv6 answers NoIPv6.
func (h *Host) IPv6() error { return h.NoIPv6 }

// Snapshot copies the state.
func (h *Host) Snapshot(ctx context.Context, sysctls []string) (*host.Snapshot, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &host.Snapshot{
		Links: slices.Clone(h.state.Links), Addresses: slices.Clone(h.state.Addresses),
		Routes: slices.Clone(h.state.Routes), Rules: slices.Clone(h.state.Rules), Gates: maps.Clone(h.state.Gates), Sysctls: map[string]string{},
	}
	for _, key := range sysctls {
		if v, ok := h.state.Sysctls[key]; ok {
			s.Sysctls[key] = v
		}
	}
	return s, ctx.Err()
}

// Link finds a device.
func (h *Host) Link(ctx context.Context, name string) (host.Link, bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l, ok := h.state.Link(name)
	return l, ok, ctx.Err()
}

// Apply carries out and records the changes.
func (h *Host) Apply(ctx context.Context, changes []host.Change) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range changes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := h.record(c.String()); err != nil {
			return err
		}
		if err := h.apply(c); err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
	}
	return nil
}

func (h *Host) apply(c host.Change) error {
	set := c.Op == host.Set
	switch {
	case c.Link != nil && !set:
		h.deleteLink(c.Link.Name)
	case c.Link != nil:
		i := slices.IndexFunc(h.state.Links, func(l host.Link) bool { return l.Name == c.Link.Name })
		if i < 0 {
			if c.Link.VXLAN == nil {
				return errors.New("no such device")
			}
			h.state.Links = append(h.state.Links, host.Link{
				Name: c.Link.Name, Index: len(h.state.Links) + 1, Kind: "vxlan",
				MAC: c.Link.MAC, VXLAN: c.Link.VXLAN,
			})
			i = len(h.state.Links) - 1
		}
		h.state.Links[i].Up = c.Link.Up
		if c.Link.MTU != 0 {
			h.state.Links[i].MTU = c.Link.MTU
		}
	case c.Address != nil:
		h.state.Addresses = replace(h.state.Addresses, *c.Address, set,
			func(a, b host.Address) bool { return a.Link == b.Link && a.Prefix == b.Prefix })
	case c.Route != nil:
		r := *c.Route
		r.Ours = true
		if set && r.Kind == host.Unicast && !slices.ContainsFunc(h.state.Links, func(l host.Link) bool { return l.Name == r.Link }) {
			return errors.New("no such device")
		}
		h.state.Routes = replace(h.state.Routes, r, set,
			func(a, b host.Route) bool { return a.Dst == b.Dst && a.Metric == b.Metric })
	case c.Rule != nil:
		h.state.Rules = replace(h.state.Rules, *c.Rule, set, func(a, b host.Rule) bool { return a == b })
	case c.Gate != nil && set:
		if h.state.Gates == nil {
			h.state.Gates = make(map[string]string)
		}
		h.state.Gates[c.Gate.Link] = c.Gate.String()
	case c.Gate != nil:
		delete(h.state.Gates, c.Gate.Link)
	case c.Neighbour != nil:
		h.neighbours = replace(h.neighbours, *c.Neighbour, set, func(a, b host.Neighbour) bool {
			return a.Link == b.Link && a.Underlay == b.Underlay && (a.Underlay && a.MAC == b.MAC || !a.Underlay && a.Addr == b.Addr)
		})
	case c.Sysctl != nil:
		h.state.Sysctls[c.Sysctl.Key] = c.Sysctl.Value
	}
	return nil
}

func replace[T any](list []T, item T, keep bool, same func(a, b T) bool) []T {
	list = slices.DeleteFunc(slices.Clone(list), func(x T) bool { return same(x, item) })
	if keep {
		list = append(list, item)
	}
	return list
}

func (h *Host) deleteLink(name string) {
	h.state.Links = slices.DeleteFunc(slices.Clone(h.state.Links), func(l host.Link) bool { return l.Name == name })
	h.state.Routes = slices.DeleteFunc(slices.Clone(h.state.Routes), func(r host.Route) bool { return r.Link == name })
	h.neighbours = slices.DeleteFunc(slices.Clone(h.neighbours), func(n host.Neighbour) bool { return n.Link == name })
	h.state.Addresses = slices.DeleteFunc(slices.Clone(h.state.Addresses), func(a host.Address) bool { return a.Link == name })
}

// SetSent says how long ago a device sent to a MAC.
func (h *Host) SetSent(link, mac string, ago time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sent == nil {
		h.sent = make(map[string]map[string]time.Duration)
	}
	if h.sent[link] == nil {
		h.sent[link] = make(map[string]time.Duration)
	}
	h.sent[link][mac] = ago
}

// Sent tells what SetSent said.
func (h *Host) Sent(_ context.Context, link string) (map[string]time.Duration, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.sent[link]), nil
}

// Neighbours lists the entries of a device.
func (h *Host) Neighbours(_ context.Context, link string) ([]host.Neighbour, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.ContainsFunc(h.state.Links, func(l host.Link) bool { return l.Name == link }) {
		return nil, fmt.Errorf("find link %s: no such device", link)
	}
	var out []host.Neighbour
	for _, n := range h.neighbours {
		if n.Link == link {
			out = append(out, n)
		}
	}
	return out, nil
}

// Filter keeps the rule set.
func (h *Host) Filter(_ context.Context, want host.Ruleset) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.filter[want.Owner].String() == want.String() {
		return 0, nil
	}
	if err := h.record(strings.TrimSpace("filter " + want.Owner)); err != nil {
		return 0, err
	}
	h.filter[want.Owner] = want
	if len(want.Sets)+len(want.Chains) == 0 {
		delete(h.filter, want.Owner)
	}
	return 1, nil
}

// RemoveFilter forgets all rule sets.
func (h *Host) RemoveFilter(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.filter)
	return h.record("remove filter")
}

// Drops answers nothing.
func (h *Host) Drops(context.Context) (host.Drops, error) { return host.Drops{}, nil }

// Plug makes the veth and its routes.
func (h *Host) Plug(_ context.Context, v host.Veth) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	name := host.VethName(v.ID)
	if slices.ContainsFunc(h.state.Links, func(l host.Link) bool { return l.Name == name }) {
		return nil
	}
	if err := h.record("plug " + v.ID); err != nil {
		return err
	}
	h.state.Links = append(h.state.Links, host.Link{Name: name, Index: len(h.state.Links) + 1, Kind: "veth", MTU: v.MTU, Up: true})
	for _, f := range []struct{ addr, src netip.Addr }{{v.V4, v.Source4}, {v.V6, v.Source6}} {
		if f.addr.IsValid() {
			h.state.Routes = append(h.state.Routes, host.Route{
				Dst: netip.PrefixFrom(f.addr, f.addr.BitLen()), Link: name,
				Src: f.src, Ours: true,
			})
		}
	}
	return nil
}

// Cut removes the routes to a pod.
func (h *Host) Cut(_ context.Context, id string, addrs ...netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.record("cut " + id); err != nil {
		return err
	}
	name := host.VethName(id)
	h.state.Routes = slices.DeleteFunc(slices.Clone(h.state.Routes), func(r host.Route) bool {
		return r.Link == name && slices.Contains(addrs, r.Dst.Addr())
	})
	return nil
}

// Unplug removes the veths.
func (h *Host) Unplug(_ context.Context, links ...string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range links {
		if err := h.record("unplug " + name); err != nil {
			return err
		}
		h.deleteLink(name)
	}
	return nil
}

// Watch returns a channel for Tell, closed when ctx ends.
func (h *Host) Watch(ctx context.Context) (<-chan host.Event, error) {
	c := make(chan host.Event, 1)
	h.mu.Lock()
	h.watchers = append(h.watchers, c)
	h.mu.Unlock()
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.watchers = slices.DeleteFunc(h.watchers, func(w chan host.Event) bool { return w == c })
		close(c)
	})
	return c, nil
}
