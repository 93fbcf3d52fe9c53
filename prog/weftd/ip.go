package weftd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/ipam"
	"weft/prog/control"
)

// claimTime is how long a person waits for an address before he is told why there is none.
const claimTime = 10 * time.Second

// IPClaim keeps an address for a container to come.
func (d *daemon) IPClaim(ctx context.Context, r control.IPClaimRequest) (control.IPClaimReply, error) {
	n, err := d.current()
	if err != nil {
		return control.IPClaimReply{}, err
	}
	if r.Name == "" {
		var b [4]byte
		rand.Read(b[:])
		r.Name = "hand-" + hex.EncodeToString(b[:])
	}
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	c, err := n.ring.Claim(ctx, ipam.Request{Container: r.Name, IfName: ipam.NoInterface, Address: r.Address})
	if err != nil {
		return control.IPClaimReply{}, explain(err)
	}
	return control.IPClaimReply{Version: control.Version, Name: c.Container, Addresses: addresses(c)}, nil
}

// IPRelease gives up what IPClaim keeps.
func (d *daemon) IPRelease(ctx context.Context, r control.IPReleaseRequest) (control.IPReleaseReply, error) {
	n, err := d.current()
	if err != nil {
		return control.IPReleaseReply{}, err
	}
	claim, err := keptByHand(n.ring.Claims(), r.What)
	if err != nil {
		return control.IPReleaseReply{}, err
	}
	if name, ok := n.clientOf(claim); ok {
		return control.IPReleaseReply{}, &control.Error{
			Code: control.Conflict, Message: r.What + " belongs to a client",
			Hint: "It goes with the client: weft client remove " + name,
		}
	}
	released, err := n.ring.Release(ctx, claim.Container, claim.IfName)
	if err != nil {
		return control.IPReleaseReply{}, explain(err)
	}
	reply := control.IPReleaseReply{Version: control.Version}
	for _, c := range released {
		reply.Addresses = append(reply.Addresses, addresses(c)...)
	}
	return reply, nil
}

// keptByHand finds the claim of an address or a name. An address of a pod is not given up behind the pod's back.
func keptByHand(claims []ipam.Claim, what string) (ipam.Claim, error) {
	addr, err := netip.ParseAddr(what)
	isAddr := err == nil
	var pod string
	for _, c := range claims {
		switch meant := isAddr && slices.Contains(addresses(c), addr) || c.Container == what; {
		case meant && c.ByHand():
			return c, nil
		case meant:
			pod = c.NetNS
		}
	}
	if pod != "" {
		return ipam.Claim{}, &control.Error{
			Code: control.Conflict, Message: what + " belongs to an attached pod",
			Hint: "It goes with its interface: weft detach " + strings.TrimPrefix(pod, "/run/netns/"),
		}
	}
	return ipam.Claim{}, &control.Error{
		Code: control.NotFound, Message: "no address is kept by hand under " + what, Hint: "Try: weft ip list",
	}
}

var errNoNamespace = errors.New("the network namespace is gone")

// sameNamespace reports whether the namespace that a claim was made with is still there.
func sameNamespace(c ipam.Claim) error {
	id, err := namespaceID(c.NetNS)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoNamespace, err)
	}
	if c.Inode != 0 && c.Inode != id.ino {
		return fmt.Errorf("%w: %s is another one now", errNoNamespace, c.NetNS)
	}
	return nil
}
