package meshsim_test

import (
	"testing"
	"testing/synctest"
	"time"
)

// most is 40 nodes of which three quarters cannot be dialled, on a network that loses some.
func most(t *testing.T, noRelay bool) *World {
	t.Helper()
	w := New(t, Spec{NAT: 0.75, NoRelay: noRelay, Conditions: wan(), Seed: 40})
	w.Storm(39, 2*time.Second)
	t.Logf("%d of %d nodes cannot be dialled", w.natted, len(w.Nodes))
	if w.natted != 30 {
		t.Fatal("that is not three quarters of them")
	}
	return w
}

// Memberlist, which knows nothing of NAT, calls nobody dead who is not, while everybody's datagrams get everywhere.
func TestNoFalseDeathWhileMostCannotBeDialled(t *testing.T) {
	skipWithRace(t)
	synctest.Test(t, func(t *testing.T) {
		w := most(t, false)
		defer w.End()
		if took, why := w.Within(2*time.Minute, w.Agreed); why != "" {
			t.Fatalf("after %v: %s", took, why)
		}
		for range 5 {
			before := w.sample()
			time.Sleep(time.Minute)
			t.Log(w.between(before, w.sample()))
		}
		if told, untrue, examples := w.Deaths(); told > 0 {
			t.Errorf("%d times a node was called dead, %d of them by one that could hear it: %v", told, untrue, examples)
		}
		if why := w.Agreed(); why != "" {
			t.Error(why)
		}
	})
}

// The same without relays: it shows that the count would show it.
func TestFalseDeathsAreCaughtWithoutRelays(t *testing.T) {
	skipWithRace(t)
	synctest.Test(t, func(t *testing.T) {
		w := most(t, true)
		defer w.End()
		time.Sleep(5 * time.Minute)
		told, untrue, examples := w.Deaths()
		t.Logf("%d deaths told, %d false: %v", told, untrue, examples)
		if untrue == 0 {
			t.Error("most pairs have no path, and nobody was called dead: nothing was measured")
		}
	})
}

func skipWithRace(t *testing.T) {
	t.Helper()
	if raceEnabled {
		t.Skip("too long for the race detector; runs without it")
	}
}
