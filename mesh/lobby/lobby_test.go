package lobby

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestWhoWaitsLongestMakesRoom(t *testing.T) {
	now := time.Unix(0, 0)
	l := New[string](Limits{All: 4, Each: 2, Patience: time.Second})
	var gone []string
	enter := func(from string) *Caller[string] {
		return l.Enter(from, now, func() { gone = append(gone, from) })
	}
	first := enter("a")
	if first == nil || enter("a") == nil || enter("a") != nil {
		t.Fatal("one place does not get its share, or more than that")
	}
	now = now.Add(500 * time.Millisecond)
	if enter("b") == nil || enter("c") == nil {
		t.Fatal("there is room")
	}
	if enter("d") != nil || len(gone) != 0 {
		t.Error("somebody who has just come was sent away")
	}
	now = now.Add(500 * time.Millisecond)
	late := enter("d")
	if late == nil || len(gone) != 1 || gone[0] != "a" {
		t.Fatalf("gone: %v", gone)
	}
	l.Leave(first) // it was sent away: nobody else loses room
	if enter("e") == nil || len(gone) != 2 || enter("f") != nil {
		t.Errorf("gone: %v", gone)
	}
	l.Leave(late)
	l.Leave(late)
	if enter("f") == nil || enter("g") != nil || len(gone) != 2 {
		t.Errorf("gone: %v", gone)
	}
}

// TestAnyCrowd: whatever comes and goes, the limits hold, who comes to an empty lobby is let in, and what is counted is there.
func TestAnyCrowd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := Limits{All: rapid.IntRange(1, 8).Draw(t, "all"), Each: rapid.IntRange(1, 4).Draw(t, "each"), Patience: time.Second}
		l, now := New[int](limits), time.Unix(0, 0)
		var came []*Caller[int]
		sent := map[int]bool{} // numbers of those who were sent away
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 700).Draw(t, "ms")) * time.Millisecond)
			if len(came) > 0 && rapid.Bool().Draw(t, "leaves") {
				l.Leave(came[rapid.IntRange(0, len(came)-1).Draw(t, "who")]) // also one that has left
				continue
			}
			from, number, empty := rapid.IntRange(0, 3).Draw(t, "from"), len(came), len(l.waiting) == 0
			c := l.Enter(from, now, func() {
				if sent[number] {
					t.Fatal("somebody is sent away twice")
				}
				sent[number] = true
			})
			switch {
			case c != nil:
				came = append(came, c)
			case empty:
				t.Fatal("an empty lobby lets nobody in")
			}
			each := map[int]int{}
			for _, w := range l.waiting {
				each[w.place]++
			}
			if len(l.waiting) > limits.All || len(l.each) != len(each) {
				t.Fatalf("%d wait, from %v", len(l.waiting), l.each)
			}
			for place, n := range each {
				if l.each[place] != n || place != 0 && n > limits.Each {
					t.Fatalf("%d wait from %d, counted are %d", n, place, l.each[place])
				}
			}
		}
	})
}
