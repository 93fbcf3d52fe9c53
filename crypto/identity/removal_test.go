package identity

import (
	"slices"
	"testing"

	"weft/crypto/tlv"
)

func TestRemovalsThatMustNotVerify(t *testing.T) {
	w := newWorld(t)
	root := w.root.Public()
	stranger := fixedKey(t, 9)
	victim := w.founder.ID()
	forged := must(Delegate(stranger, stranger.Public(), day))
	for name, i := range map[string]Issuer{
		"signed by a stranger":       {Key: stranger},
		"signed by a member":         {Key: w.node},
		"delegated by a stranger":    {Key: stranger, Delegation: forged},
		"somebody else's delegation": {Key: stranger, Delegation: w.delegation},
	} {
		if err := must(i.Remove(victim, ByHand, day)).Verify(root); err == nil {
			t.Errorf("%s: verifies", name)
		}
	}
	for _, why := range []Reason{ByHand, Silence, Stolen, 200} {
		r := must(Issuer{Key: w.issuer, Delegation: w.delegation}.Remove(victim, why, day))
		if err := r.Verify(root); err != nil || r.Issuer() != w.issuer.ID() {
			t.Errorf("%s by an issuer: %v", why, err)
		}
	}
	if err := must(Issuer{Key: w.root}.Remove(victim, ByHand, day)).Verify(root); err != nil {
		t.Errorf("by the root: %v", err)
	}
}

func TestARemovalSaysUpToWhichStart(t *testing.T) {
	w := newWorld(t)
	by := Issuer{Key: w.issuer, Delegation: w.delegation}
	for _, start := range []uint64{0, 7} {
		r := must(ParseRemoval(must(by.RemoveStart(w.node.ID(), start, ByHand, day)).Raw()))
		if err := r.Verify(w.root.Public()); err != nil || r.Start != start {
			t.Errorf("start %d, want %d: %v", r.Start, start, err)
		}
	}
	if string(must(by.Remove(w.node.ID(), ByHand, day)).Raw()) != string(must(by.RemoveStart(w.node.ID(), 0, ByHand, day)).Raw()) {
		t.Error("a removal without a start is not what it was before there were any")
	}
}

// Nobody leaves for another: neither an issuer, nor a member with its own key.
func TestOnlyTheNodeItselfLeaves(t *testing.T) {
	w := newWorld(t)
	if _, err := (Issuer{Key: w.root}).Remove(w.node.ID(), Left, day); err == nil {
		t.Error("the root said that a node left")
	}
	id := w.founder.ID()
	say := func(why Reason, d *Delegation, c *Certificate) []byte {
		var body []byte
		if d != nil {
			body = tlv.Append(body, tagDelegation, d.Raw())
		}
		body = tlv.AppendUint8(tlv.Append(body, removalNode, id[:]), removalReason, uint8(why))
		if c != nil {
			body = tlv.Append(body, removalCertificate, c.Raw())
		}
		return seal(KindRemoval, body, w.node)
	}
	for name, raw := range map[string][]byte{
		"without a certificate":    say(Left, nil, nil),
		"with its own certificate": say(Left, nil, w.certificate),
		"with a delegation":        say(Left, w.delegation, w.founding),
		"by hand":                  say(ByHand, nil, w.founding),
		"without a reason":         say(0, nil, nil),
	} {
		if _, err := ParseRemoval(raw); err == nil {
			t.Errorf("%s: parses", name)
		}
	}
	stolen := must(ParseRemoval(say(Left, nil, w.founding)))
	if err := stolen.Verify(w.root.Public()); err == nil {
		t.Error("a member left in the name of another")
	}
	r := must(Leave(w.certificate, w.node, day))
	if err := r.Verify(w.root.Public()); err != nil || r.Node != w.node.ID() || r.Issuer() != w.node.ID() || r.Reason != Left {
		t.Errorf("%v %+v", err, r)
	}
}

// Whatever the order in which removals of a node are heard, the weightiest is kept.
func TestTheWeightiestRemovalHolds(t *testing.T) {
	w := newWorld(t)
	by := Issuer{Key: w.issuer, Delegation: w.delegation}
	id := w.node.ID()
	want := []*Removal{
		must(by.Remove(id, Stolen, day)), must(by.Remove(id, ByHand, day)), must(Leave(w.certificate, w.node, day)), must(by.Remove(id, Silence, day)),
	}
	got := []*Removal{want[2], want[0], want[3], want[1]}
	slices.SortFunc(got, (*Removal).Compare)
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	for _, a := range want {
		for _, b := range want {
			if a.Compare(b) != -b.Compare(a) {
				t.Errorf("%s and %s", a.Reason, b.Reason)
			}
		}
	}
	if newer := must(by.Remove(id, 77, day)); newer.Compare(want[0]) <= 0 || newer.Compare(want[2]) >= 0 || newer.Reason.String() != "by hand" {
		t.Error("a reason of a newer weft is not an operator's")
	}
}
