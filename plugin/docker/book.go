package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
)

// Store keeps the book through a restart. Save is durable when it returns.
type Store interface {
	Load() ([]byte, error) // nil: nothing was saved yet
	Save(b []byte) error
}

const bookVersion = 1

// book is what dockerd told us and does not tell again: which networks and endpoints there are. mu guards content and is
// held for one look or one change, with the writing of it.
type book struct {
	store Store

	mu sync.Mutex
	content
}

// content is the book as it is stored.
type content struct {
	Version   int                 `json:"version"`
	Networks  map[string]network  `json:"networks"`
	Endpoints map[string]endpoint `json:"endpoints"`
}

type network struct {
	Name     string `json:"name,omitempty"` // in the cluster; empty: the common network
	Internal bool   `json:"internal,omitempty"`
}

// endpoint is one interface of a container:
//
//	(none) -> created -> joined -> created -> (none)
//
// A joined one has a sandbox. Docker calls its address by the name that Claim was called with.
type endpoint struct {
	Network string     `json:"network"`
	Lease   string     `json:"lease"`
	MAC     string     `json:"mac"`
	V4      netip.Addr `json:"v4,omitzero"`
	V6      netip.Addr `json:"v6,omitzero"`
	Sandbox string     `json:"sandbox,omitempty"`
	Gateway int        `json:"gateway,omitempty"` // which of 169.254.1.1 to .254, different within a sandbox
	Wanted  []Port     `json:"wanted,omitempty"`  // to be published when it is joined; see join
	Ports   []Port     `json:"ports,omitempty"`
}

func (e endpoint) addresses() (all []netip.Addr) {
	for _, a := range []netip.Addr{e.V4, e.V6} {
		if a.IsValid() {
			all = append(all, a)
		}
	}
	return all
}

func openBook(s Store) (*book, error) {
	b := &book{store: s, content: content{Version: bookVersion, Networks: map[string]network{}, Endpoints: map[string]endpoint{}}}
	text, err := s.Load()
	if err != nil {
		return nil, fmt.Errorf("read the book of Docker's networks: %w", err)
	}
	if text == nil {
		return b, nil
	}
	b.content = content{}
	if err := json.Unmarshal(text, &b.content); err != nil {
		return nil, fmt.Errorf("read the book of Docker's networks: %w", err)
	}
	if b.Version != bookVersion {
		return nil, fmt.Errorf("the book of Docker's networks has version %d; this weft reads %d", b.Version, bookVersion)
	}
	if b.Networks == nil || b.Endpoints == nil {
		return nil, errors.New("read the book of Docker's networks: it lacks a part")
	}
	return b, nil
}

// change lets f change a copy, and keeps it only when it was saved.
func (b *book) change(f func(*content) error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := content{Version: bookVersion, Networks: maps.Clone(b.Networks), Endpoints: maps.Clone(b.Endpoints)}
	if err := f(&next); err != nil {
		return err
	}
	text, err := json.MarshalIndent(next, "", " ")
	if err != nil {
		return err
	}
	if err := b.store.Save(append(text, '\n')); err != nil {
		return fmt.Errorf("keep the book of Docker's networks: %w", err)
	}
	b.content = next
	return nil
}

// read returns the content; its maps are not changed any more.
func (b *book) read() content {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.content
}

// siblings lists the endpoints of the same container, id among them.
func (c content) siblings(id string) []endpoint {
	e := c.Endpoints[id]
	if e.Sandbox == "" {
		return []endpoint{e}
	}
	var all []endpoint
	for _, other := range slices.Sorted(maps.Keys(c.Endpoints)) {
		if c.Endpoints[other].Sandbox == e.Sandbox {
			all = append(all, c.Endpoints[other])
		}
	}
	return all
}

// arrangement follows from the book alone. A container is with all its addresses in all its networks: which of them it
// sends from is its own choice.
func (c content) arrangement() Arrangement {
	a := Arrangement{Siblings: map[netip.Addr][]netip.Addr{}}
	members := map[string][]netip.Addr{}
	for _, n := range c.Networks {
		if n.Name != "" {
			members[n.Name] = nil
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.Endpoints)) {
		e := c.Endpoints[id]
		var others []netip.Addr
		for _, s := range c.siblings(id) {
			if s.Lease != e.Lease {
				others = append(others, s.addresses()...)
			}
		}
		n := c.Networks[e.Network]
		if n.Name != "" {
			members[n.Name] = append(append(members[n.Name], e.addresses()...), others...)
		}
		if n.Internal {
			a.Internal = append(a.Internal, e.addresses()...)
		}
		if len(others) > 0 {
			for _, own := range e.addresses() {
				a.Siblings[own] = others
			}
		}
		a.Ports = append(a.Ports, e.Ports...)
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		all := members[name]
		slices.SortFunc(all, netip.Addr.Compare)
		a.Networks = append(a.Networks, Network{Name: name, Members: slices.Compact(all)})
	}
	return a
}
