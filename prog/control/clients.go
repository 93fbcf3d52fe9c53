package control

import (
	"context"
	"net/http"
	"net/netip"
)

// ClientAddRequest lets a machine from outside in, with WireGuard.
type ClientAddRequest struct {
	Name     string         `json:"name"`
	Endpoint netip.AddrPort `json:"endpoint,omitzero"` // where it shall reach this node; zero: the first address that is told to members
}

// ClientAddReply is all that the client needs. Config holds its private key, which is kept nowhere else.
type ClientAddReply struct {
	Version   int              `json:"version"`
	Name      string           `json:"name"`
	Addresses List[netip.Addr] `json:"addresses"` // IPv4 first
	Config    string           `json:"config"`    // for wg-quick and WireGuard's apps
}

// ClientInfo is one client of this node.
type ClientInfo struct {
	Name      string           `json:"name"`
	Addresses List[netip.Addr] `json:"addresses"` // IPv4 first
	Endpoint  string           `json:"endpoint"`  // where it was heard last; empty: not since the wire started
	LastSeen  string           `json:"last_seen"` // its last handshake, RFC 3339; empty: none
	RxBytes   uint64           `json:"rx_bytes"`
	TxBytes   uint64           `json:"tx_bytes"`
	Created   string           `json:"created"` // RFC 3339
}

// Clients are those of this node.
type Clients struct {
	Version int              `json:"version"`
	Clients List[ClientInfo] `json:"clients"`
}

// ClientAdd lets a client in.
func (c *Client) ClientAdd(ctx context.Context, r ClientAddRequest) (ClientAddReply, error) {
	return call[ClientAddReply](ctx, c, http.MethodPost, changeTimeout, r, "clients")
}

// ClientList lists the clients of this node.
func (c *Client) ClientList(ctx context.Context) (Clients, error) {
	return get[Clients](ctx, c, "clients")
}

// ClientRemove cuts a client off.
func (c *Client) ClientRemove(ctx context.Context, name string) error {
	_, err := call[struct{}](ctx, c, http.MethodDelete, changeTimeout, nil, "clients", name)
	return err
}
