package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft/ipam/space"
	"weft/mesh/peer"
)

// The states of an allocator, as status prints them.
const (
	StateReady       = "ready"       // gives and lends addresses
	StateUnconfirmed = "unconfirmed" // gives from its own blocks, lends nothing
	StateWaiting     = "waiting"     // gives nothing; the reason says what for
	StateRemoved     = "removed"     // gives nothing for good: this node was removed from the cluster
)

// maxNames is how many members a sentence names.
const maxNames = 8

// Status is a snapshot for people.
type Status struct {
	State       string
	Full        bool           // it has nothing to give, and waits for space alone
	Confirmed   bool           // it has heard a quorum since its start, so it lends too
	Reason      string         // a sentence; empty when ready and all is well
	WaitsFor    []peer.ID      // voters that have not answered since the start, while that matters
	Blocks      []netip.Prefix // own, without linked IPv6
	Used        int            // own addresses that are in use, the host's included
	Free        int            // own addresses that may be given now or after their rest
	Unreachable int            // addresses in blocks of members that are not alive
	Reclaims    []Reclaim      // of removed members whose blocks nobody has taken over yet, by ID
}

// Status answers while a disk or a peer hangs.
func (a *Allocator) Status() Status {
	peers := a.cfg.Network.Peers()
	b := a.ballot()
	h := a.hearing(b)
	reclaims := a.reclaims(b, peers)
	a.mu.RLock()
	defer a.mu.RUnlock()
	s := Status{State: StateReady, Confirmed: a.phase == phaseConfirmed, Reclaims: reclaims}
	s.Used, s.Free = a.space.Count()
	s.Blocks = untwinned(a.blocks[a.self])
	for _, p := range peers {
		if p.State == peer.Dead || p.State == peer.Removed {
			s.Unreachable = min(s.Unreachable+addresses(a.blocks[p.ID]), space.Many)
		}
	}
	if a.phase == phaseStarting || a.phase == phaseUnconfirmed {
		s.WaitsFor = h.waits
	}
	heard := h.sentence(peers)
	_, some := a.space.Lowest()
	switch {
	case a.removed:
		s.State, s.Reason = StateRemoved, removedReason
	case a.phase == phaseStopped:
		s.State, s.Reason = StateWaiting, a.stopped
	case a.phase == phaseLeft:
		s.State, s.Reason = StateWaiting, leftReason
	case a.problem != "":
		s.State, s.Reason = StateWaiting, a.problem
	case a.phase == phaseStarting:
		s.State, s.Reason = StateWaiting, heard
	case a.phase == phaseUnconfirmed:
		s.State, s.Reason = StateUnconfirmed, heard
	case !some:
		s.State, s.Full, s.Reason = StateWaiting, true, a.lacking(peers)
	}
	if s.Reason == "" {
		if strays := a.strays(); len(strays) > 0 {
			s.Reason = fmt.Sprintf("%d addresses in use are not in this node's blocks any more, the first one is %s of %s",
				len(strays), strays[0].Addr(), strays[0].Container)
		}
	}
	return s
}

// sentence says how far a start has come: who is waited for, and who goes on counting though it was removed.
func (h hearing) sentence(peers []peer.Info) string {
	heard, gone := 0, []peer.ID{}
	for _, v := range h.voters {
		switch {
		case h.answered.Has(v.ID):
			heard++
		case !slices.Contains(h.waits, v.ID):
			gone = append(gone, v.ID)
		}
	}
	s := fmt.Sprintf("restarted and heard %d of %d voters", heard, len(h.voters))
	if len(h.waits) > 0 {
		s += ", waits for " + names(peers, h.waits...)
	}
	if len(gone) > 0 {
		s += "; the removal is not complete of " + names(peers, gone...)
	}
	return s
}

// sentence says why there is no address to give.
func (a *Allocator) sentence() string {
	if s := a.Status(); s.Reason != "" {
		return s.Reason
	}
	return "the allocator is busy"
}

// whyNot is the error of a claim that waited in vain.
func (a *Allocator) whyNot() error {
	a.mu.RLock()
	waits := !a.serves() || a.problem != ""
	a.mu.RUnlock()
	if waits {
		return fmt.Errorf("%w: %s", ErrNotReady, a.sentence())
	}
	return a.shortage()
}

// shortage is the error of a claim for which nobody had an address.
func (a *Allocator) shortage() error {
	peers := a.cfg.Network.Peers()
	a.mu.RLock()
	defer a.mu.RUnlock()
	return fmt.Errorf("%w: %s", ErrNoAddress, a.lacking(peers))
}

// lacking says who was asked for space and why nobody gave any; mu is held.
func (a *Allocator) lacking(peers []peer.Info) string {
	var pools []string
	for _, p := range a.cfg.Universe.Pools() {
		pools = append(pools, p.Prefix.String())
	}
	by := make(map[lack][]peer.ID)
	for id, l := range a.outcome.lacks {
		by[l] = append(by[l], id)
	}
	var parts []string
	if ids := by[lackUnreachable]; len(ids) > 0 {
		parts = append(parts, fmt.Sprintf("%d unreachable (%s)", len(ids), names(peers, ids...)))
	}
	if ids := by[lackConfirmed]; len(ids) > 0 {
		parts = append(parts, fmt.Sprintf("%d unconfirmed (%s)", len(ids), names(peers, ids...)))
	}
	if ids := by[lackIdentity]; len(ids) > 0 {
		parts = append(parts, fmt.Sprintf("%d stopped (%s)", len(ids), names(peers, ids...)))
	}
	if ids := by[lackSpace]; len(ids) > 0 {
		parts = append(parts, fmt.Sprintf("%d full", len(ids)))
	}
	sentence := "no peer can lend in " + strings.Join(pools, ", ") + ": "
	switch {
	case a.outcome.rounds == 0:
		sentence = "no peer was asked yet for space in " + strings.Join(pools, ", ")
	case len(parts) == 0:
		sentence += "no other member has any of it"
	default:
		sentence += strings.Join(parts, ", ")
	}
	if next, rests := a.space.NextWake(); rests {
		sentence += fmt.Sprintf("; a released address is free again in %d s", 1+int(next.Sub(a.now()).Seconds()))
	}
	return sentence
}

// names lists members as people know them.
func names(peers []peer.Info, ids ...peer.ID) string {
	var all []string
	for _, id := range ids {
		name := id.Short()
		if i := slices.IndexFunc(peers, func(p peer.Info) bool { return p.ID == id }); i >= 0 && peers[i].Name != "" {
			name = peers[i].Name
		}
		all = append(all, name)
	}
	slices.Sort(all)
	if len(all) > maxNames {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:maxNames], ", "), len(all)-maxNames)
	}
	return strings.Join(all, ", ")
}
