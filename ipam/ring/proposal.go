package ring

import "weft/mesh/peer"

// proposalDomain keeps a proposal from being taken for the record of a completed view: they look alike.
const proposalDomain = "weft view proposal"

// Proposal is what a coordinator asks the survivors to promise: a view record before the view is complete. No state
// carries it.
type Proposal struct{ view *View }

// Propose writes and signs a proposal.
func Propose(u *Universe, s Signer, number uint64, removed []Named) (*Proposal, error) {
	v, err := newView(u, s, proposalDomain, View{number: number, removed: removed})
	if err != nil {
		return nil, err
	}
	return &Proposal{v}, nil
}

// ParseProposal reads a proposal and checks all that can be checked without keys.
func ParseProposal(raw []byte) (*Proposal, error) {
	v, err := parseView(raw)
	if err != nil {
		return nil, err
	}
	return &Proposal{v}, nil
}

// Verify checks that an issuer wrote the proposal, and that everybody whom it names is known to be removed.
func (p *Proposal) Verify(u *Universe, j Judge) error {
	if !j.Issued(p.view.writer) {
		return ErrUnknownSigner
	}
	if err := j.knowRemoved(p.view); err != nil {
		return err
	}
	return j.Verify(p.view.writer, proposalDomain, u.signed(p.view.payload), p.view.sig)
}

// Number is what the view's number will be.
func (p *Proposal) Number() uint64 { return p.view.number }

// Writer is the coordinator.
func (p *Proposal) Writer() peer.ID { return p.view.writer }

// Removed lists who is to be removed. The caller does not change it.
func (p *Proposal) Removed() []Named { return p.view.removed }

// Names reports whether id is to be removed.
func (p *Proposal) Names(id peer.ID) bool { return p.view.Names(id) }

// ID names the proposal.
func (p *Proposal) ID() ID { return p.view.id }

// Raw is the proposal as it travels and is stored. The caller does not change it.
func (p *Proposal) Raw() []byte { return p.view.raw }
