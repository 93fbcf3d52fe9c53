package weftd

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/crypto/identity"
	"weft/crypto/token"
	"weft/mesh/peer"
	"weft/prog/control"
)

// defaultTTL is the life of a token that nobody chose one for.
const defaultTTL = 24 * time.Hour

// maxTTL keeps a token from becoming a password.
const maxTTL = 365 * 24 * time.Hour

// errNoAddress is the answer to whoever wants an invitation to a machine that nobody can reach.
var errNoAddress error = &control.Error{
	Code: control.NotReady, Message: "this machine has no address that others could join at",
	Hint: "Give it one, or name one: --advertise ADDR",
}

// invite makes a token and its public record.
func invite(issuer identity.Issuer, c *identity.Cluster, seeds []token.Seed, r control.TokenRequest, now time.Time) (string, *identity.Invitation, error) {
	ttl := time.Duration(r.TTL)
	switch {
	case ttl == 0:
		ttl = defaultTTL
	case ttl < time.Second || ttl > maxTTL:
		return "", nil, &control.Error{Code: control.Usage, Message: "ttl: want between 1s and 8760h", Cause: "got " + ttl.String()}
	}
	if r.Uses < 0 {
		return "", nil, &control.Error{Code: control.Usage, Message: "uses: want a positive number, or 0 for no limit"}
	}
	if int64(r.Uses) > math.MaxUint32 { // it would wrap, perhaps to no limit
		return "", nil, &control.Error{
			Code: control.Usage, Message: "uses: want a positive number, or 0 for no limit",
			Cause: fmt.Sprintf("got %d, at most %d", r.Uses, uint32(math.MaxUint32)),
		}
	}
	if len(seeds) == 0 {
		return "", nil, errNoAddress
	}
	t, err := token.New(identity.FingerprintOf(c.Root), seeds...)
	if err != nil {
		return "", nil, err
	}
	key, err := t.Key()
	if err != nil {
		return "", nil, err
	}
	inv, err := issuer.Invite(key.Public(), identity.Terms{NotAfter: now.Add(ttl), Uses: uint32(r.Uses), Ephemeral: r.Ephemeral, Created: now})
	if err != nil {
		return "", nil, err
	}
	return t.Format(), inv, nil
}

// inviteSeeds names this node at its endpoints, as many as fit and not more than needed: one for each family.
func inviteSeeds(endpoints []netip.AddrPort, self peer.ID) []token.Seed {
	var seeds []token.Seed
	var v4, v6 bool
	for _, ep := range endpoints {
		is4 := ep.Addr().Unmap().Is4()
		if is4 && v4 || !is4 && v6 {
			continue
		}
		v4, v6 = v4 || is4, v6 || !is4
		seeds = append(seeds, token.SeedOf(ep, self))
	}
	return seeds
}

// issuer is what this node signs invitations with.
func (n *node) issuer() (identity.Issuer, error) {
	if r, ok := n.removed(); ok {
		return identity.Issuer{}, n.noMember(r)
	}
	if d, ok := n.mesh.Roster().Delegation(n.key.ID()); ok {
		return identity.Issuer{Key: n.key, Delegation: d}, nil
	}
	if !n.root.IsZero() {
		return identity.Issuer{Key: n.root}, nil
	}
	var names []string
	for _, id := range n.mesh.Roster().Issuers() {
		names = append(names, n.peerName(id))
	}
	return identity.Issuer{}, &control.Error{
		Code: control.Denied, Message: "this node may not admit others",
		Cause: "it holds no delegation of the root key; these do: " + strings.Join(names, ", "),
		Hint:  "Make the token there, or let this node: weft issuer add " + n.name,
	}
}

// secondDoor names this node at its second TCP port, for machines whose networks let nothing out but to that.
func secondDoor(endpoints []netip.AddrPort, port uint16, self peer.ID) []token.Seed {
	if port == 0 || len(endpoints) == 0 {
		return nil
	}
	return []token.Seed{token.SeedOf(netip.AddrPortFrom(endpoints[0].Addr(), port), self)}
}

// tokenSeeds are this node and, if there is room, others that are alive. A node behind a NAT names those first that can be
// dialled.
func (n *node) tokenSeeds() []token.Seed {
	own, _ := n.mesh.Peer(n.key.ID())
	seeds := append(inviteSeeds(own.Endpoints, own.ID), secondDoor(own.Endpoints, own.TCPPort, own.ID)...)
	var others []token.Seed
	for _, info := range n.mesh.Peers() {
		if info.State == peer.Alive && len(info.Endpoints) > 0 && !hidden(info) {
			others = append(others, token.SeedOf(info.Endpoints[0], info.ID))
			others = append(others, secondDoor(info.Endpoints, info.TCPPort, info.ID)...)
		}
	}
	if hidden(own) {
		seeds, others = others, seeds
	}
	seeds = append(seeds, others...)
	return seeds[:min(len(seeds), token.MaxSeeds)]
}

// TokenCreate makes an invitation. Its record spreads by itself; a seed that has not got it yet asks the others.
func (d *daemon) TokenCreate(_ context.Context, r control.TokenRequest) (control.TokenReply, error) {
	n, err := d.current()
	if err != nil {
		return control.TokenReply{}, err
	}
	issuer, err := n.issuer()
	if err != nil {
		return control.TokenReply{}, err
	}
	text, inv, err := invite(issuer, n.member.cluster, n.tokenSeeds(), r, time.Now())
	if err != nil {
		return control.TokenReply{}, err
	}
	if err := n.mesh.Roster().Add(inv); err != nil {
		return control.TokenReply{}, err
	}
	return control.TokenReply{
		Version: control.Version, ID: inv.ID().String(), Token: text,
		Expires: inv.NotAfter.UTC().Format(time.RFC3339),
	}, nil
}

// TokenList lists the records of tokens.
func (d *daemon) TokenList(context.Context) (control.Tokens, error) {
	list := control.Tokens{Version: control.Version}
	n, err := d.current()
	if err != nil {
		return list, err
	}
	roster := n.mesh.Roster()
	for _, inv := range roster.Invitations() {
		if roster.Removed(identity.IDOf(inv.Public)) {
			continue // made for a silent member's return, and nobody's token
		}
		list.Tokens = append(list.Tokens, control.Token{
			ID: inv.ID().String(), Expires: inv.NotAfter.UTC().Format(time.RFC3339),
			Uses: int(inv.Uses), Used: roster.Uses(inv.ID()), Ephemeral: inv.Ephemeral,
			Revoked: roster.Revoked(identity.KindInvitation, inv.ID()),
		})
	}
	return list, nil
}

// TokenRevoke ends a token before its time.
func (d *daemon) TokenRevoke(_ context.Context, id string) error {
	n, err := d.current()
	if err != nil {
		return err
	}
	var found []*identity.Invitation
	for _, inv := range n.mesh.Roster().Invitations() {
		if len(id) >= minIDPart && strings.HasPrefix(inv.ID().String(), id) {
			found = append(found, inv)
		}
	}
	if len(found) != 1 {
		return &control.Error{
			Code: control.NotFound, Message: fmt.Sprintf("%d tokens have an id that begins with %q", len(found), id),
			Hint: "Try: weft token list",
		}
	}
	issuer, err := n.issuer()
	if err != nil {
		return err
	}
	rev, err := issuer.Revoke(identity.KindInvitation, found[0].ID(), time.Now())
	if err != nil {
		return err
	}
	return n.mesh.Roster().Add(rev)
}

// IssuerList lists the members that may admit others.
func (d *daemon) IssuerList(context.Context) (control.Issuers, error) {
	list := control.Issuers{Version: control.Version}
	n, err := d.current()
	if err != nil {
		return list, err
	}
	for _, id := range n.mesh.Roster().Issuers() {
		info, _ := n.mesh.Peer(id)
		self := id == n.key.ID()
		list.Issuers = append(list.Issuers, control.Issuer{
			ID: id.String(), Name: info.Name, State: info.State.String(), Self: self,
			Root: self && !n.root.IsZero(),
		})
	}
	return list, nil
}

// rooted is this node if it holds the root key.
func (d *daemon) rooted() (*node, error) {
	n, err := d.current()
	if err == nil && n.root.IsZero() {
		err = &control.Error{
			Code: control.Denied, Message: "only the machine that holds the root key can change the issuers",
			Hint: "That is the one where weft init was typed",
		}
	}
	return n, err
}

// IssuerAdd delegates to a member.
func (d *daemon) IssuerAdd(_ context.Context, word string) error {
	n, err := d.rooted()
	if err != nil {
		return err
	}
	info, err := n.find(word)
	if err != nil {
		return err
	}
	if slices.Contains(n.mesh.Roster().Issuers(), info.ID) {
		return nil
	}
	pub, _ := n.publicKey(info.ID)
	// A delegation is told from an earlier one by its time, in whole seconds; what was revoked stays revoked.
	for at := time.Now(); ; at = at.Add(time.Second) {
		delegation, err := identity.Delegate(n.root, pub, at)
		if err != nil {
			return err
		}
		if !n.mesh.Roster().Revoked(identity.KindDelegation, delegation.ID()) {
			return n.mesh.Roster().Add(delegation)
		}
	}
}

// IssuerRemove revokes a member's delegation.
func (d *daemon) IssuerRemove(_ context.Context, word string) error {
	n, err := d.rooted()
	if err != nil {
		return err
	}
	info, err := n.find(word)
	if err != nil {
		return err
	}
	roster := n.mesh.Roster()
	for {
		delegation, ok := roster.Delegation(info.ID)
		if !ok {
			return nil
		}
		if len(roster.Issuers()) == 1 {
			return &control.Error{
				Code: control.Conflict, Message: info.Name + " is the last issuer",
				Cause: "without one nobody could ever join again", Hint: "Name another first: weft issuer add NAME",
			}
		}
		rev, err := identity.Issuer{Key: n.root}.Revoke(identity.KindDelegation, delegation.ID(), time.Now())
		if err != nil {
			return err
		}
		if err := roster.Add(rev); err != nil {
			return err
		}
	}
}
