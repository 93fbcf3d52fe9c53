package controltest

import (
	"context"
	"net/netip"
	"slices"

	"weft/prog/control"
)

// ClientAdd keeps a client and answers with a configuration that is always the same.
func (b *Backend) ClientAdd(_ context.Context, r control.ClientAddRequest) (control.ClientAddReply, error) {
	if err := b.begin("ClientAdd"); err != nil {
		return control.ClientAddReply{}, err
	}
	defer b.mu.Unlock()
	if slices.ContainsFunc(b.clients, func(c control.ClientInfo) bool { return c.Name == r.Name }) {
		return control.ClientAddReply{}, &control.Error{
			Code: control.Conflict, Message: "there is a client " + r.Name + " already", Cause: "its key was shown once and is not kept",
			Hint: "For a new key: weft client remove " + r.Name + ", then add it again",
		}
	}
	addr := netip.MustParseAddr("10.32.0.77")
	b.clients = append(b.clients, control.ClientInfo{Name: r.Name, Addresses: []netip.Addr{addr}, Created: Created})
	return control.ClientAddReply{
		Version: control.Version, Name: r.Name, Addresses: []netip.Addr{addr},
		Config: "[Interface]\nPrivateKey = AAAA\nAddress = 10.32.0.77/32\n",
	}, nil
}

// ClientList lists what ClientAdd kept.
func (b *Backend) ClientList(context.Context) (control.Clients, error) {
	if err := b.begin("ClientList"); err != nil {
		return control.Clients{}, err
	}
	defer b.mu.Unlock()
	return control.Clients{Version: control.Version, Clients: slices.Clone(b.clients)}, nil
}

// ClientRemove forgets one.
func (b *Backend) ClientRemove(_ context.Context, name string) error {
	if err := b.begin("ClientRemove"); err != nil {
		return err
	}
	defer b.mu.Unlock()
	n := len(b.clients)
	b.clients = slices.DeleteFunc(b.clients, func(c control.ClientInfo) bool { return c.Name == name })
	if len(b.clients) == n {
		return &control.Error{Code: control.NotFound, Message: "this node has no client " + name, Hint: "Try: weft client list"}
	}
	return nil
}
