package ring

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weft/mesh/peer"
)

// history is a cluster whose members follow the rules of removal: who has promised to refuse somebody takes nothing of
// theirs, and a view is complete when all survivors have promised and told what they know.
type history struct {
	*world
	t       *rapid.T
	members []*lifeline
	sent    []message // all states that were ever on their way, those of the removed too
	number  uint64
}

type message struct {
	from  *lifeline
	state []byte
}

// lifeline is what one member knows.
type lifeline struct {
	key     int
	r       *Ring
	refused peer.Set
	gone    bool
	strange []*lifeline // who was removed when it came: they were never members to it, and nothing comes from them
}

const issuers = 3 // the first members

// take merges a state as a member does; it believes even the removed whom except names.
func (h *history) take(m *lifeline, wire []byte, except peer.Set) {
	b, err := Decode(h.u, wire)
	if err != nil {
		h.t.Fatal(err)
	}
	j := h.judge(m.r)
	j.Removed = func(peer.ID) bool { return true } // rosters are ahead of rings here
	j.Refuse = func(id peer.ID) bool { return !except.Has(id) && (m.refused.Has(id) || m.r.Names(id)) }
	before := m.r
	m.r, _ = m.r.Merge(h.u.Prove(b, j))
	if err := m.r.Check(); err != nil {
		h.t.Fatal(err)
	}
	if err := m.r.CheckSuccessor(before); err != nil {
		h.t.Fatal(err)
	}
}

func (h *history) alive() (all []*lifeline) {
	return slices.DeleteFunc(slices.Clone(h.members), func(m *lifeline) bool { return m.gone })
}

// happen lets one thing happen that is no removal.
func (h *history) happen() {
	m := rapid.SampledFrom(h.alive()).Draw(h.t, "member")
	switch rapid.IntRange(0, 3).Draw(h.t, "what") {
	case 0:
		blocks := m.r.Blocks(h.id(m.key))
		to := rapid.SampledFrom(h.alive()).Draw(h.t, "to")
		if len(blocks) == 0 || m.refused.Has(h.id(to.key)) || m.r.Names(h.id(to.key)) {
			return
		}
		from, end, _ := h.u.Range(rapid.SampledFrom(blocks).Draw(h.t, "block"))
		n := max(1, (end-from)/2)
		next, _, err := m.r.Grant(h.keys[m.key], h.u.Block(end-n, n), h.id(to.key))
		if err != nil {
			h.t.Fatal(err)
		}
		m.r = next
		h.sent = append(h.sent, message{m, next.Encode()})
	case 1:
		h.sent = append(h.sent, message{m, m.r.Encode()})
	default:
		if len(h.sent) == 0 {
			return
		}
		if late := rapid.SampledFrom(h.sent).Draw(h.t, "state"); !slices.Contains(m.strange, late.from) {
			h.take(m, late.state, nil)
		}
	}
}

// join lets one more member be, which has promised whatever its sponsor has, or will do so later.
func (h *history) join(refused peer.Set) *lifeline {
	if len(h.members) == len(h.keys) {
		return nil
	}
	m := &lifeline{key: len(h.members), r: New(h.u), refused: make(peer.Set)}
	for id := range refused {
		m.refused.Add(id)
	}
	for _, other := range h.members {
		if other.gone {
			m.strange = append(m.strange, other)
		}
	}
	h.members = append(h.members, m)
	return m
}

// remove removes a member or two, with all whose removal is not complete, or, without new, these alone. Unless all goes
// well the view is given up half way. Anything may happen in between.
func (h *history) remove(anew, well bool) {
	able := slices.DeleteFunc(h.alive(), func(m *lifeline) bool { return m.key >= issuers })
	c := rapid.SampledFrom(able).Draw(h.t, "coordinator")
	if anew && len(able) > 1 {
		for range rapid.IntRange(1, 2).Draw(h.t, "victims") {
			v := rapid.SampledFrom(h.alive()).Draw(h.t, "victim")
			v.gone = v != c
		}
	}
	named := make(peer.Set)
	var removed []int
	for _, m := range h.members { // in the coordinator's eyes: whoever completed a view may have been the only one to know
		if m.gone && !c.r.Removed().Has(h.id(m.key)) {
			named.Add(h.id(m.key))
			removed = append(removed, m.key)
		}
	}
	if len(removed) == 0 {
		return
	}
	h.number++
	promised := make(map[*lifeline]bool)
	for {
		waits := slices.DeleteFunc(h.alive(), func(m *lifeline) bool { return promised[m] })
		if len(waits) == 0 {
			break
		}
		m := rapid.SampledFrom(waits).Draw(h.t, "survivor")
		for id := range named {
			m.refused.Add(id)
		}
		promised[m] = true
		h.take(c, m.r.Encode(), named)
		for rapid.IntRange(0, 2).Draw(h.t, "meanwhile") == 0 {
			h.happen()
		}
		if well {
			continue
		}
		switch rapid.IntRange(0, 9).Draw(h.t, "and then") {
		case 0:
			if j := h.join(c.refused); j != nil {
				h.take(j, c.r.Encode(), nil)
			}
		case 1:
			h.join(nil)
		case 2:
			return // somebody else will have to finish
		}
	}
	next, _, err := c.r.TakeOver(h.keys[c.key], h.takeover(h.number, removed...))
	if err != nil {
		h.t.Fatal(err)
	}
	c.r = next
	h.sent = append(h.sent, message{c, next.Encode()})
}

// TestWhatIsKeptDoesNotDependOnTheWayToIt plays removals with joins, late states and removed coordinators. In the end
// all who are left tell each other all, and are the same.
func TestWhatIsKeptDoesNotDependOnTheWayToIt(t *testing.T) {
	w := newWorld(t, 9, pool("10.32.0.0/24", 28))
	rapid.Check(t, func(t *rapid.T) {
		h := &history{world: w, t: t}
		for range rapid.IntRange(issuers, 6).Draw(t, "members") {
			h.join(nil)
		}
		for range rapid.IntRange(5, 60).Draw(t, "events") {
			if rapid.IntRange(0, 7).Draw(t, "removal") == 0 {
				h.remove(true, false)
			} else {
				h.happen()
			}
		}
		h.remove(false, true)
		for range 2 {
			for _, from := range h.alive() {
				for _, to := range h.alive() {
					if d := from.r.Delta(to.r.summarize()); d != nil {
						h.take(to, d, nil)
					}
				}
			}
		}
		first := h.alive()[0]
		for _, m := range h.alive() {
			if !bytes.Equal(m.r.Digest(), first.r.Digest()) {
				t.Fatalf("member %d keeps %s, member %d %s", first.key, h.text(first.r), m.key, h.text(m.r))
			}
		}
	})
}

func (h *history) text(r *Ring) (s string) {
	for _, v := range r.Views() {
		s += fmt.Sprintf("view %d by %s (%d confirmed), ", v.number, v.writer.Short(), len(v.confirmed))
	}
	for _, run := range r.Runs() {
		s += fmt.Sprintf("%s %d.%d %s, ", run.Block, run.View, run.Seq, run.Owner.Short())
	}
	return s
}
