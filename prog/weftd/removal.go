package weftd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"weft/crypto/identity"
	"weft/mesh/circuit"
	"weft/mesh/peer"
	"weft/prog/control"
)

const (
	tellRemovalTime = 15 * time.Second // for all who are alive to take a removal; the others learn it by gossip
	forceTime       = 20 * time.Second // for their space to be taken over by force; it goes on after that
	maxRemoved      = 64               // members in one request, or in one turn of removing the silent
	returnLife      = 100 * 365 * 24 * time.Hour
)

// admitted is what circuits ask about everybody who has shown a certificate. Who was removed is shown the proof.
func (n *node) admitted(id peer.ID, c *identity.Certificate) error {
	roster := n.mesh.Roster()
	if r, ok := roster.Removal(id); ok {
		return &circuit.RemovedError{Removal: r}
	}
	if roster.Removed(n.key.ID()) {
		return errors.New("this node was removed itself")
	}
	return roster.Vouched(c)
}

// dial opens a circuit, and learns that this node was removed when the other end proves it.
func (n *node) dial(ctx context.Context, to peer.ID, kind byte) (*circuit.Conn, error) {
	conn, err := n.circuits.Dial(ctx, to, kind)
	if proof, ok := errors.AsType[*circuit.RemovedError](err); ok && proof.Removal.Node == n.key.ID() {
		if err := n.mesh.Roster().Add(proof.Removal); err != nil {
			n.log.Error("own removal not kept", "err", err)
		}
	}
	return conn, err
}

// whyNoMember is the sponsor's question.
func (n *node) whyNoMember(id peer.ID) (identity.Reason, bool) {
	if id == n.key.ID() && n.ring.Leaving() {
		return identity.Left, true // it has told others what it knows, and agrees to nothing any more
	}
	r, ok := n.mesh.Roster().Removal(id)
	if !ok {
		return 0, false
	}
	return r.Reason, true
}

// removed is the end of this node's membership, if it was ended.
func (n *node) removed() (*identity.Removal, bool) { return n.mesh.Roster().Removal(n.key.ID()) }

// PeerRemove signs that members are no more, and tells all who are alive.
func (d *daemon) PeerRemove(ctx context.Context, r control.RemoveRequest) (control.RemoveReply, error) {
	reply := control.RemoveReply{Version: control.Version}
	n, err := d.current()
	if err != nil {
		return reply, err
	}
	victims, err := n.victims(r)
	if err != nil {
		return reply, err
	}
	by, err := n.remover()
	if err != nil {
		return reply, err
	}
	var items []identity.Item
	for _, v := range victims {
		removed, signed, err := n.removal(by, v, r.Stolen)
		if err != nil {
			return reply, err
		}
		reply.Removed = append(reply.Removed, removed)
		items = append(items, signed...)
		n.log.Warn("remove member", "peer", v.ID, "name", v.Name, "reason", removed.Reason, "state", v.State.String(), "forced", r.Force)
		if r.Stolen && v.Issuer {
			reply.Notes = append(reply.Notes, v.Name+" could admit machines: look for members that nobody knows (weft peer list), "+
				"and end the tokens that it made (weft token list).")
		}
	}
	tell, cancel := context.WithTimeout(ctx, tellRemovalTime)
	defer cancel()
	told, err := n.mesh.Tell(tell, items...)
	if err != nil {
		return reply, err
	}
	if r.Force {
		var ids []peer.ID
		for _, v := range victims {
			ids = append(ids, v.ID)
		}
		force, cancel := context.WithTimeout(ctx, forceTime)
		defer cancel()
		switch err := n.ring.Force(force, ids); {
		case errors.Is(err, context.DeadlineExceeded):
			reply.Notes = append(reply.Notes, "Their space is not taken over yet: see weft status.")
		case err != nil:
			reply.Notes = append(reply.Notes, "Their space is not taken over by force: "+err.Error()+".")
		}
	}
	reply.Told, reply.Members = 1+len(told), n.mesh.Stats().MembersKnown
	if away := reply.Members - reply.Told; away > 0 {
		reply.Notes = append(reply.Notes, fmt.Sprintf("%d members are away; each is told by the first that it meets.", away))
	}
	return reply, nil
}

// victims finds who is meant, and refuses who must not be removed like this.
func (n *node) victims(r control.RemoveRequest) ([]peer.Info, error) {
	if len(r.Peers) == 0 || len(r.Peers) > maxRemoved {
		return nil, &control.Error{Code: control.Usage, Message: fmt.Sprintf("name between 1 and %d members", maxRemoved)}
	}
	var victims []peer.Info
	for _, word := range r.Peers {
		v, err := n.find(word)
		if err != nil {
			return nil, err
		}
		switch {
		case v.ID == n.key.ID():
			return nil, &control.Error{
				Code: control.Usage, Message: "this node does not remove itself", Hint: "Try: weft leave",
			}
		case slices.ContainsFunc(victims, func(w peer.Info) bool { return w.ID == v.ID }):
			continue
		case n.lives(v) && !r.Force && !r.Stolen:
			return nil, &control.Error{
				Code: control.Conflict, Message: v.Name + " is alive", Cause: "its pods would lose the network at once",
				Hint: "Type weft leave there; or --force if it must go; or --stolen if somebody else has it",
			}
		}
		victims = append(victims, v)
	}
	return victims, nil
}

// lives reports whether there is a sign of life of a member: a rumour, or what the wire hears.
func (n *node) lives(info peer.Info) bool {
	if info.State == peer.Alive || info.State == peer.Suspect {
		return true
	}
	n.glue.linksMu.Lock()
	defer n.glue.linksMu.Unlock()
	return info.State != peer.Removed && n.glue.up.Has(info.ID)
}

// remover is this node as an issuer. The right is asked of nobody: whoever may remove does it here.
func (n *node) remover() (identity.Issuer, error) {
	roster := n.mesh.Roster()
	if r, ok := n.removed(); ok {
		return identity.Issuer{}, n.noMember(r)
	}
	if _, ok := roster.Delegation(n.key.ID()); !ok && !n.root.IsZero() {
		d, err := identity.Delegate(n.root, n.key.Public(), time.Now())
		if err == nil {
			err = roster.Add(d)
		}
		if err != nil {
			return identity.Issuer{}, fmt.Errorf("delegate to this node: %w", err)
		}
	}
	if d, ok := roster.Delegation(n.key.ID()); ok {
		return identity.Issuer{Key: n.key, Delegation: d}, nil
	}
	var names []string
	for _, id := range roster.Issuers() {
		names = append(names, n.peerName(id))
	}
	slices.Sort(names)
	return identity.Issuer{}, &control.Error{
		Code: control.Denied, Message: "this node may not remove others",
		Cause: "only issuers may: " + strings.Join(names, ", "),
		Hint:  "Type it there; or let this node, on the machine with the root key: weft issuer add " + n.name,
	}
}

// forcedShown is how long after a removal it is said that it was finished by force.
const forcedShown = 30 * 24 * time.Hour

// forcedNotes name those whose removal was finished by force, on whichever machine: the rule that no address is given twice
// was broken knowingly, and who looks for the cause of trouble should find it.
func (n *node) forcedNotes(now time.Time) (notes []string) {
	for _, f := range n.ring.ForcedRemovals() {
		r, ok := n.mesh.Roster().Removal(f.Node)
		if !ok || now.Sub(r.Created) > forcedShown {
			continue
		}
		notes = append(notes, fmt.Sprintf("%s was removed on %s, and %s gave its space away by force: what silent members had from it may be given again",
			n.peerName(f.Node), r.Created.UTC().Format("2006-01-02 15:04 UTC"), n.peerName(f.By)))
	}
	return notes
}

// noMember is the answer to whoever wants something of the cluster from a node that was removed.
func (n *node) noMember(r *identity.Removal) error {
	return &control.Error{Code: control.Denied, Message: "this node is no member any more", Cause: n.whyRemoved(r)}
}

// removal signs what is not signed yet about one member.
func (n *node) removal(by identity.Issuer, v peer.Info, stolen bool) (control.RemovedPeer, []identity.Item, error) {
	why := identity.ByHand
	if stolen {
		why = identity.Stolen
	}
	out := control.RemovedPeer{ID: v.ID.String(), Name: v.Name, Reason: why.String()}
	r, err := by.RemoveStart(v.ID, n.ring.Incarnation(v.ID), why, time.Now())
	if err != nil {
		return out, nil, err
	}
	items := []identity.Item{r}
	roster := n.mesh.Roster()
	if old, ok := roster.Removal(v.ID); ok && (old.Reason == why || old.Compare(r) < 0) {
		items, out.Reason, out.Before = nil, old.Reason.String(), true
	}
	cert, ok := roster.Certificate(v.ID)
	if !stolen || !ok || cert.Invitation == nil {
		return out, items, nil
	}
	token := cert.Invitation.ID()
	for _, id := range roster.JoinedWith(token) {
		if id != v.ID {
			out.Others = append(out.Others, n.peerName(id))
		}
	}
	if roster.Revoked(identity.KindInvitation, token) {
		return out, items, nil
	}
	revocation, err := by.Revoke(identity.KindInvitation, token, time.Now())
	if err != nil {
		return out, nil, err
	}
	out.Token = token.String()
	return out, append(items, revocation), nil
}

// silenced signs the removal of a member that nobody has heard for too long, with an invitation for its key: who proves
// that it was this node comes back with it, once, as another.
func (n *node) silenced(by identity.Issuer, id peer.ID, now time.Time) ([]identity.Item, error) {
	r, err := by.RemoveStart(id, n.ring.Incarnation(id), identity.Silence, now)
	if err != nil {
		return nil, err
	}
	cert, ok := n.mesh.Roster().Certificate(id)
	if !ok {
		return []identity.Item{r}, nil
	}
	inv, err := by.Invite(cert.Public(), identity.Terms{NotAfter: now.Add(returnLife), Uses: 1, Ephemeral: cert.Ephemeral, Created: now})
	if err != nil {
		return nil, err
	}
	return []identity.Item{inv, r}, nil
}

// whyRemoved is what status says on a node that was removed: who, when, why, and what to type.
func (n *node) whyRemoved(r *identity.Removal) string {
	by := "the root key"
	if id := r.Issuer(); !id.IsZero() {
		by = n.peerName(id)
	}
	when := r.Created.UTC().Format("2006-01-02 15:04 UTC")
	switch r.Reason {
	case identity.Silence:
		why := fmt.Sprintf("removed by %s on %s because nobody had heard it for long", by, when)
		if no := n.staysOut.Load(); no != nil {
			return why + "; it may not come back by itself: " + *no
		}
		return why + "; it comes back by itself as a new node as soon as it reaches a member"
	case identity.Stolen:
		return fmt.Sprintf("reported stolen by %s on %s: its keys are refused. If it is yours, wipe it and join it as a new node: "+
			"weft leave --purge, then weft join TOKEN", by, when)
	case identity.Left:
		return "it has left the cluster. To join again as a new node: weft join TOKEN"
	case identity.ByHand:
	}
	return fmt.Sprintf("removed by hand by %s on %s. To join again as a new node, with a new token: weft join TOKEN", by, when)
}
