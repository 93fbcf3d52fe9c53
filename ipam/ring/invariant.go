package ring

import (
	"errors"
	"fmt"
	"slices"
)

// Check verifies what holds for every state, whatever it was merged from: each atom has an owner with a chain of grants
// from the founder, blocks are aligned, and nothing is kept that no register rests on.
func (r *Ring) Check() error {
	if len(r.regs) != r.u.atoms {
		return fmt.Errorf("%d registers for %d atoms", len(r.regs), r.u.atoms)
	}
	needed := make(map[ID]bool)
	for i, g := range r.regs {
		if r.owner(i).IsZero() {
			return fmt.Errorf("atom %s has no owner", r.u.Block(i, 1))
		}
		for depth := 1; g != nil; depth++ {
			if !r.Has(g.id) {
				return fmt.Errorf("grant of %s to %s is in use but not kept", g.block, g.owner.Short())
			}
			if from, to, ok := r.u.Range(g.block); !ok || i < from || i >= to {
				return fmt.Errorf("atom %s rests on a grant of %s", r.u.Block(i, 1), g.block)
			}
			needed[g.id] = true
			if g.takeover() {
				if err := r.checkRecord(g); err != nil {
					return err
				}
				g = nil
				continue
			}
			parent := r.links[g.parent]
			switch {
			case depth > MaxDepth:
				return fmt.Errorf("atom %s rests on more than %d grants", r.u.Block(i, 1), MaxDepth)
			case parent == nil && (g.parent != ID{} || g.grantor != r.u.founder || g.view != 0):
				return fmt.Errorf("grant of %s to %s does not lead to the founder", g.block, g.owner.Short())
			case parent != nil && (parent.owner != g.grantor || parent.seq >= g.seq || parent.view != g.view):
				return fmt.Errorf("grant of %s to %s does not follow from the one before", g.block, g.owner.Short())
			}
			g = parent
		}
	}
	if len(needed) != len(r.links) {
		return fmt.Errorf("%d grants are kept, %d are needed", len(r.links), len(needed))
	}
	if len(r.order) != len(r.links) || !ascends(r.order, byPosition) {
		return errors.New("grants out of order")
	}
	for _, g := range r.order {
		if !r.Has(g.id) {
			return fmt.Errorf("grant of %s to %s is sent but not kept", g.block, g.owner.Short())
		}
	}
	if !ascends(r.views, compareViews) {
		return errors.New("view records out of order")
	}
	sum := 0
	for _, blocks := range r.Owners() {
		for _, b := range blocks {
			from, to, ok := r.u.Range(b)
			if !ok {
				return fmt.Errorf("block %s is not aligned", b)
			}
			sum += to - from
		}
	}
	if sum != r.u.atoms {
		return fmt.Errorf("the owners' blocks have %d of %d atoms", sum, r.u.atoms)
	}
	return nil
}

// checkRecord verifies that a takeover has its view record.
func (r *Ring) checkRecord(g *Grant) error {
	i := slices.IndexFunc(r.views, func(v *View) bool { return v.id == g.record })
	if i < 0 {
		return checkTakeover(g, nil)
	}
	return checkTakeover(g, r.views[i])
}

// CheckSuccessor verifies that no register of r has gone back since old, an earlier state of the same node.
func (r *Ring) CheckSuccessor(old *Ring) error {
	for i, g := range r.regs {
		if compare(g, old.regs[i]) < 0 {
			return fmt.Errorf("atom %s went back to an older owner", r.u.Block(i, 1))
		}
	}
	return nil
}

// CheckPeers verifies that two states of honest members hold no two grants of an atom with the same number.
func (r *Ring) CheckPeers(other *Ring) error {
	for i, g := range r.regs {
		h := other.regs[i]
		if g != nil && h != nil && g.id != h.id && g.view == h.view && g.seq == h.seq {
			return fmt.Errorf("atom %s was granted twice in view %d with seq %d: to %s and to %s",
				r.u.Block(i, 1), g.view, g.seq, g.owner.Short(), h.owner.Short())
		}
	}
	return nil
}
