package weftd

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/peer"
)

// TestPairsOfACopiedDisk: a machine that a voter does not believe agrees on a secret with nobody who says so, whoever dials, and
// so has no tunnel there.
func TestPairsOfACopiedDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lab := newPairLab(t, 3)
		copied, knows, asksInVain := lab.members[0], lab.members[1], lab.members[2]
		asked := make(chan peer.ID, 1000)
		copied.introduce = func(_ context.Context, to peer.ID) error {
			asked <- to
			if to == knows.self {
				return errors.New("another machine is believed")
			}
			return nil
		}
		end := lab.serveAll(true)
		time.Sleep(time.Minute)
		end()
		if knows.dials.Load() == 0 || len(asked) == 0 {
			t.Fatal("nobody has tried")
		}
		for _, m := range []*pairMember{copied, knows} {
			other := map[*pairMember]*pairMember{copied: knows, knows: copied}[m]
			if n := len(m.secrets(other.self)); n != 0 {
				t.Errorf("%d secrets with one that must not have a tunnel", n)
			}
		}
		if _, ok := lab.agreed(copied, asksInVain); !ok {
			t.Error("who says nothing against it has no tunnel either")
		}
	})
}

// TestPairsOfALaterStart: what an earlier start of a member has agreed opens no tunnel any more when a later one has agreed.
func TestPairsOfALaterStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lab := newPairLab(t, 2)
		a, b := lab.members[0], lab.members[1]
		start := uint64(1)
		a.startOf = func(peer.ID) uint64 { return start }
		defer lab.serveAll(false)()
		for i, want := range []int{1, 2, 1, 2} {
			if i == 2 {
				start++
			}
			if err := b.agree(t.Context(), a.self); err != nil {
				t.Fatal(err)
			}
			if n := len(a.secrets(b.self)); n != want {
				t.Errorf("%d secrets after agreement %d, want %d", n, i+1, want)
			}
			if _, ok := lab.agreed(a, b); !ok {
				t.Errorf("agreement %d is none", i+1)
			}
		}
	})
}
