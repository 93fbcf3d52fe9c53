package ipamsim

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/ipam"
)

// recoverWithin is how long a whole network may take until all is well.
const (
	recoverWithin = 4 * time.Minute // more than a join that nobody can ask about any more holds up a removal
	lookEvery     = 500 * time.Millisecond
)

// Recover makes the network whole, starts every machine that can come back, and checks I13: everybody who is a member
// is confirmed, all know the same, nothing is owned by who was removed, and everybody gives addresses while there are
// any.
func (w *World) Recover() {
	w.settle() // what the last step began may still meet the end of a disk
	if w.audit.err != nil {
		return
	}
	w.logf("all is well from here on")
	w.mending, w.recovering = true, w.Now()
	w.Heal()
	w.SetWeather(Weather{})
	for _, m := range w.machines {
		m.disk.untrap()
		m.disk.mu.Lock()
		m.disk.died = nil
		m.disk.mu.Unlock()
	}
	for _, m := range w.machines {
		if m.leaving {
			w.Stop(m) // and stays after all
			m.leaving = false
		}
	}
	w.startAll()
	if !w.viable() {
		return // too few are left, by force or by copies
	}
	next := w.Now()
	well := w.Until(recoverWithin, func() bool {
		if w.Now() < next {
			return false
		}
		next = w.Now() + lookEvery
		w.bury()
		return w.unwell() == ""
	})
	if !well {
		if w.viable() { // a voter that was agreed on and never came may have tipped the scales
			w.audit.fail("I13: after %s of a whole network %s", recoverWithin, w.unwell())
		}
		return
	}
	if w.counts.Removals > 0 {
		w.Run(w.setup.CoolTaken) // what was taken over rests first
	}
	w.claimAll()
}

// bury removes the members that cannot come back.
func (w *World) bury() {
	all := w.living()
	at := w.up(0, func(m *Machine) bool {
		x, ok := all.member(m.key.id)
		return ok && x.issuer && all.knows(m) && !m.view.forever && m.view.confirmed
	})
	if at == nil {
		return
	}
	for _, m := range w.machines {
		if all.knows(m) && (m.retired || m.view.forever || m.now != nil && m.now.alloc.Leaving()) {
			w.Remove(at, Stolen, m)
		}
	}
}

// living is all that those who are up, and members, know of the membership.
func (w *World) living() *roster {
	var all *roster
	for _, m := range w.machines {
		if m.now != nil && !m.roster.removed(m.key.id) {
			all = union(all, m.roster)
		}
	}
	return all
}

// unwell says what is not yet as it should be.
func (w *World) unwell() string {
	var first *Machine
	all := w.living()
	if all == nil {
		return "nobody is up"
	}
	for _, m := range w.machines {
		if m.now == nil || m.view.forever || all.removed(m.key.id) {
			continue
		}
		if !m.view.confirmed {
			return fmt.Sprintf("%s is not confirmed: %s", m, m.now.alloc.Status().Reason)
		}
		if _, has := m.now.alloc.HostAddress(); !has && w.roomy() {
			return fmt.Sprintf("%s has no address: %s", m, m.now.alloc.Status().Reason)
		}
		if m.roster.sum != all.sum {
			return fmt.Sprintf("%s does not know all members", m)
		}
		for _, r := range m.view.runs {
			if all.removed(r.Owner) {
				return fmt.Sprintf("%s of %s, who was removed, is not taken over; %s", r.Block, w.audit.name(r.Owner), m.reclaims())
			}
		}
		if first == nil {
			first = m
		} else if !w.agree(first, m) {
			return fmt.Sprintf("%s and %s know different owners", first, m)
		}
		if fenced := m.fenced(); first != m && !maps.Equal(first.fenced(), fenced) {
			return fmt.Sprintf("to %s the removal of %s is complete, to %s that of %s", first, w.audit.names(first.fenced()), m, w.audit.names(fenced))
		}
	}
	if first == nil {
		return "nobody is up"
	}
	return ""
}

// agree reports whether two machines know the same: who owns what, and by which writings. After a removal was forced, a survivor
// that was away may keep a record that nobody else takes, until newer ones push it out; then the owners are all that counts.
func (w *World) agree(a, b *Machine) bool {
	if w.audit.rivals == "" {
		return bytes.Equal(a.now.alloc.Digest(), b.now.alloc.Digest())
	}
	return maps.EqualFunc(a.now.alloc.Blocks(), b.now.alloc.Blocks(), slices.Equal[[]netip.Prefix])
}

// reclaims is what a machine says of removals.
func (m *Machine) reclaims() string {
	if m.w.Now()-m.w.recovering < recoverWithin {
		return "" // nobody reads it
	}
	var b strings.Builder
	for _, o := range m.w.machines { // the leader knows most
		if o.now == nil {
			continue
		}
		for _, r := range o.now.alloc.Status().Reclaims {
			fmt.Fprintf(&b, "%s of %s in view %d: %s; ", o, m.w.audit.name(r.Node), r.View, r.Problem)
		}
	}
	return b.String()
}

// claimAll lets everybody have one more address.
func (w *World) claimAll() {
	waiting, all := 0, w.living()
	for _, m := range w.machines {
		if m.now == nil || m.view.forever || all.removed(m.key.id) {
			continue
		}
		waiting++
		w.Claim(m, "last", netip.Addr{}, func(_ netip.Addr, err error) {
			waiting--
			if err != nil && (!errors.Is(err, ipam.ErrNoAddress) || w.roomy()) {
				w.audit.fail("I13: %s has no address in a whole network: %v", m, err)
			}
		})
	}
	if !w.Until(2*claimWait, func() bool { return waiting == 0 }) {
		w.audit.fail("I13: %d machines do not answer in a whole network", waiting)
	}
}

// roomy reports whether so many atoms are without any claim that nobody has a reason to be without an address.
func (w *World) roomy() bool {
	used := make(map[netip.Prefix]bool)
	machines := 0
	for _, m := range w.machines {
		if m.now != nil {
			machines++
		}
		for addr := range m.view.claims {
			if p, err := addr.Prefix(w.setup.AtomBits); err == nil {
				used[p] = true
			}
		}
	}
	return w.universe.Atoms()-len(used) > 4*machines
}
