package join

import (
	"context"
	"errors"
	"fmt"

	"weft/crypto/identity"
	"weft/mesh/peer"
)

// delegate gives a new voter a delegation while there are too few issuers: by the root key if it is here, else by asking
// the founder, who has it unless it was moved. A join does not fail for lack of it.
func (s *Sponsor) delegate(ctx context.Context, cert *identity.Certificate) [][]byte {
	if cert.Ephemeral {
		return nil
	}
	if d, ok := s.cfg.Roster.Delegation(cert.ID()); ok {
		return [][]byte{d.Raw()}
	}
	if len(s.cfg.Roster.Issuers()) >= s.cfg.Issuers {
		return nil
	}
	founder := s.cfg.Cluster.Founder
	var d *identity.Delegation
	var err error
	if root := s.cfg.RootKey(); !root.IsZero() {
		d, err = s.delegateTo(root, cert.Public())
	} else if founder != s.self && s.cfg.Alive(founder) {
		ctx, cancel := context.WithTimeout(ctx, voteTimeout/2)
		defer cancel()
		var b []byte
		if b, err = s.call(ctx, founder, MethodDelegate, (&issued{certificate: cert}).append(nil)); err == nil {
			if d, err = identity.ParseDelegation(b); err == nil {
				err = d.Verify(s.cfg.Cluster.Root)
			}
		}
	} else {
		return nil
	}
	if err != nil {
		s.cfg.Log.Info("get delegation for new voter", "peer", cert.ID(), "err", err)
		return nil
	}
	return [][]byte{d.Raw()}
}

func (s *Sponsor) delegateTo(root identity.Key, public []byte) (*identity.Delegation, error) {
	if !root.Public().Equal(s.cfg.Cluster.Root) {
		return nil, errors.New("the root key is of another cluster")
	}
	d, err := identity.Delegate(root, public, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Roster.AddRaw(d.Raw()); err != nil {
		return nil, fmt.Errorf("keep delegation: %w", err)
	}
	return d, nil
}

// handleDelegate answers an issuer that has countersigned a voter's certificate and does not hold the root key.
func (s *Sponsor) handleDelegate(_ context.Context, from peer.ID, req []byte) ([]byte, error) {
	q, err := parseIssued(req)
	if err == nil {
		err = q.certificate.Verify(s.cfg.Cluster.Root)
	}
	if err != nil {
		return no(errInvalid(err)), nil
	}
	cert := q.certificate
	if d, ok := s.cfg.Roster.Delegation(cert.ID()); ok {
		return yes(d.Raw()), nil
	}
	root := s.cfg.RootKey()
	_, removed := s.cfg.Removed(cert.ID())
	switch _, asks := s.cfg.Roster.Delegation(from); {
	case !asks || cert.Ephemeral || removed:
		return no(errInvalid(errors.New("no delegation for this node"))), nil
	case root.IsZero():
		return no(errInvalid(errors.New("the root key is not here"))), nil
	case len(s.cfg.Roster.Issuers()) >= s.cfg.Issuers:
		return no(errInvalid(errors.New("there are enough issuers"))), nil
	}
	d, err := s.delegateTo(root, cert.Public())
	if err != nil {
		return nil, err
	}
	return yes(d.Raw()), nil
}
