package control

import (
	"context"
	"net/http"
	"net/netip"
)

// What the plugins of container runtimes ask for beyond Attach and Detach. An attachment is named by container and
// interface: runtimes know both for as long as the container lives, also when its namespace is gone.

// Attached names an attachment.
type Attached struct {
	Container string `json:"container"`
	Ifname    string `json:"ifname"`
}

// CheckRequest asks whether an attachment is whole.
type CheckRequest struct {
	Netns     string           `json:"netns"`
	Container string           `json:"container"`
	Ifname    string           `json:"ifname"`
	Addresses List[netip.Addr] `json:"addresses"`      // that it must have; none: those of its claim
	Lent      bool             `json:"lent,omitempty"` // made by Lend: there is nothing but the claim
}

// CheckReply says nothing: an attachment that is not whole is an error.
type CheckReply struct {
	Version int `json:"version"`
}

// LendRequest asks for addresses only; somebody else makes the interface.
type LendRequest struct {
	Netns     string           `json:"netns,omitempty"` // the claim goes when this namespace has gone
	Container string           `json:"container"`
	Ifname    string           `json:"ifname"`
	Pod       string           `json:"pod,omitempty"`
	Network   string           `json:"network,omitempty"`
	IPs       List[netip.Addr] `json:"ips"`
	Timeout   Duration         `json:"timeout,omitempty"` // as for Attach
}

// LendReply is what was lent; Detach takes it back. The prefixes are those of this node's blocks, so what lies in them is
// on this node. Each has its gateway, an address that nothing else on this node has.
type LendReply struct {
	Version   int                `json:"version"`
	Addresses List[netip.Prefix] `json:"addresses"` // IPv4 first, with host bits
	Gateways  List[netip.Addr]   `json:"gateways"`  // one for each address
	Pools     List[netip.Prefix] `json:"pools"`
	Existed   bool               `json:"existed"`
}

// CollectRequest releases the attachments of a network that are not on the list.
type CollectRequest struct {
	Network string         `json:"network"`
	Keep    List[Attached] `json:"keep"`
}

// CollectReply names what was released.
type CollectReply struct {
	Version  int            `json:"version"`
	Released List[Attached] `json:"released"`
}

// ReadyReply says nothing: where no pod can be attached there is an error, with the reason.
type ReadyReply struct {
	Version int `json:"version"`
}

// Check asks whether an attachment is whole.
func (c *Client) Check(ctx context.Context, r CheckRequest) (CheckReply, error) {
	return call[CheckReply](ctx, c, http.MethodPost, readTimeout, r, "attachments", "check")
}

// Lend gives addresses without an interface.
func (c *Client) Lend(ctx context.Context, r LendRequest) (LendReply, error) {
	return call[LendReply](ctx, c, http.MethodPost, changeTimeout, r, "attachments", "lend")
}

// Collect releases what a runtime has forgotten.
func (c *Client) Collect(ctx context.Context, r CollectRequest) (CollectReply, error) {
	return call[CollectReply](ctx, c, http.MethodPost, changeTimeout, r, "attachments", "collect")
}

// Ready asks whether pods can be attached.
func (c *Client) Ready(ctx context.Context) (ReadyReply, error) {
	return get[ReadyReply](ctx, c, "ready")
}
