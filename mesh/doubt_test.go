package mesh

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/peer"
)

// A death that is told while members return counts only when it is not taken back: nobody who looks sees it before. At any other
// time it counts at once.
func TestDeathsAreDoubtedWhileMembersReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := lonely(t)
		var others []peer.ID
		for _, k := range makeStuff().keys {
			if id := k.ID(); id != m.self && m.roster.Member(id) {
				others = append(others, id)
			}
		}
		if len(others) < 3 {
			t.Fatalf("%d other members", len(others))
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go m.believe(ctx)
		watch := m.Watch()
		say := func(id peer.ID, alive bool) { m.hearRumour(id.String(), alive) }
		expect := func(when string, id peer.ID, want peer.State, news bool) {
			t.Helper()
			synctest.Wait()
			seen := len(watch) > 0
			if seen {
				<-watch
			}
			if info, _ := m.Peer(id); info.State != want || seen != news {
				t.Errorf("%s: it is %v, want %v; news: %v", when, info.State, want, seen)
			}
		}
		own, far := others[0], others[1]
		say(own, true)
		say(far, true)
		expect("told of", own, peer.Alive, true)
		say(far, false)
		expect("nobody has returned", far, peer.Dead, true)
		time.Sleep(time.Hour)
		say(far, true) // the parts meet
		expect("it returns", far, peer.Alive, true)

		say(own, false)
		expect("a late word of its death", own, peer.Alive, false)
		say(own, false)
		time.Sleep(doubtFor - time.Second)
		say(own, true)
		expect("taken back", own, peer.Alive, false)
		time.Sleep(2 * time.Second)
		expect("later", own, peer.Alive, false)

		say(own, false)
		time.Sleep(doubtFor - 1)
		expect("not taken back yet", own, peer.Alive, false)
		time.Sleep(time.Nanosecond)
		expect("never taken back", own, peer.Dead, true)

		time.Sleep(doubtWithin)
		say(far, false)
		expect("long after the last return", far, peer.Dead, true)

		// Most are gone: it may be a cut that ends just now.
		third := others[2]
		say(third, true)
		expect("a third one", third, peer.Alive, true)
		m.alive() // as somebody always asks
		say(third, false)
		expect("two of three are missing", third, peer.Alive, false)
		time.Sleep(doubtFor)
		expect("it is gone as well", third, peer.Dead, true)
	})
}
