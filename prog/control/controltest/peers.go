package controltest

import (
	"context"
	"fmt"
	"slices"

	"weft/prog/control"
)

// PeerList is the peers of Have.
func (b *Backend) PeerList(context.Context) (control.Peers, error) {
	if err := b.begin("PeerList"); err != nil {
		return control.Peers{}, err
	}
	defer b.mu.Unlock()
	return control.Peers{Version: control.Version, Peers: b.Have.Peers}, nil
}

// PeerShow looks into Details.
func (b *Backend) PeerShow(_ context.Context, name string) (control.PeerDetail, error) {
	if err := b.begin("PeerShow"); err != nil {
		return control.PeerDetail{}, err
	}
	defer b.mu.Unlock()
	d, ok := b.Details[name]
	if !ok {
		return d, b.noPeer(name)
	}
	return d, nil
}

// PeerRemove removes the peers that are not alive, or any with Force or Stolen.
func (b *Backend) PeerRemove(_ context.Context, r control.RemoveRequest) (control.RemoveReply, error) {
	reply := control.RemoveReply{Version: control.Version, Told: b.Have.Cluster.Alive, Members: b.Have.Cluster.Members}
	if err := b.begin("PeerRemove"); err != nil {
		return reply, err
	}
	defer b.mu.Unlock()
	var found []*control.Peer
	for _, name := range r.Peers {
		i := slices.IndexFunc(b.Have.Peers, func(p control.Peer) bool { return p.Name == name || p.ID == name })
		if i < 0 {
			return reply, b.noPeer(name)
		}
		p := &b.Have.Peers[i]
		if p.State == control.PeerAlive && !r.Force && !r.Stolen {
			return reply, &control.Error{Code: control.Conflict, Message: p.Name + " is alive"}
		}
		found = append(found, p)
	}
	reason := "by hand"
	if r.Stolen {
		reason = "stolen"
	}
	for _, p := range found {
		p.State, p.Reason = control.PeerRemoved, "removed "+reason
		reply.Removed = append(reply.Removed, control.RemovedPeer{ID: p.ID, Name: p.Name, Reason: reason})
	}
	return reply, nil
}

func (b *Backend) noPeer(name string) error {
	return &control.Error{Code: control.NotFound, Message: fmt.Sprintf("there is no peer %q", name), Hint: "Try: weft peer list"}
}

// IssuerList lists them.
func (b *Backend) IssuerList(context.Context) (control.Issuers, error) {
	if err := b.begin("IssuerList"); err != nil {
		return control.Issuers{}, err
	}
	defer b.mu.Unlock()
	return control.Issuers{Version: control.Version, Issuers: slices.Clone(b.issuers)}, nil
}

// IssuerAdd takes peers of Have.
func (b *Backend) IssuerAdd(_ context.Context, name string) error {
	if err := b.begin("IssuerAdd"); err != nil {
		return err
	}
	defer b.mu.Unlock()
	for _, p := range b.Have.Peers {
		if p.Name == name {
			b.issuers = append(b.issuers, control.Issuer{ID: p.ID, Name: p.Name, State: p.State})
			return nil
		}
	}
	return b.noPeer(name)
}

// IssuerRemove takes what IssuerAdd took.
func (b *Backend) IssuerRemove(_ context.Context, name string) error {
	if err := b.begin("IssuerRemove"); err != nil {
		return err
	}
	defer b.mu.Unlock()
	before := len(b.issuers)
	b.issuers = slices.DeleteFunc(b.issuers, func(i control.Issuer) bool { return i.Name == name })
	if len(b.issuers) == before {
		return b.noPeer(name)
	}
	return nil
}
