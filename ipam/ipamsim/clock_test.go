package ipamsim_test

import (
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam"
	"weft/ipam/ipamsim"
)

// TestAClockThatIsSetMeasuresWaitsAsBefore holds the simulator's clocks to what time.Time does with those of a machine.
func TestAClockThatIsSetMeasuresWaitsAsBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now func() time.Time
		w, err := ipamsim.New(ipamsim.Setup{Seed: 1, Configure: func(c *ipam.Config) { now = c.Now }})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		day := func() time.Time { return now().Round(0) } // the wall clock alone
		began, first := now(), day()
		if !first.Equal(time.Now()) {
			t.Errorf("it shows %s, and is %s", first, time.Now())
		}
		for _, by := range []time.Duration{24 * time.Hour, -48 * time.Hour} {
			w.SetClock(w.Machines()[0], by)
			w.Run(time.Minute)
		}
		after := now()
		if took := after.Sub(began); took != 2*time.Minute || !after.After(began) {
			t.Errorf("2 minutes took %s", took)
		}
		if shown := day().Sub(first); shown != 2*time.Minute-24*time.Hour {
			t.Errorf("the wall clock shows %s more, want a day less and 2 minutes", shown)
		}
	})
}

// TestSchedule17ClocksAreSet: a life in which wall clocks are set, by a day ahead or back, is the life without that, message
// by message.
func TestSchedule17ClocksAreSet(t *testing.T) {
	for seed := range uint64(20) {
		p := ipamsim.Draw(seed)
		set := p
		set.Steps = nil
		for i, s := range p.Steps {
			if s.Verb == ipamsim.DoClock {
				continue
			}
			set.Steps = append(set.Steps, s, ipamsim.Step{Verb: ipamsim.DoClock, A: s.B, N: 8 + 240*(i%2)})
		}
		p.Steps = nil
		for _, s := range set.Steps {
			if s.Verb != ipamsim.DoClock {
				p.Steps = append(p.Steps, s)
			}
		}
		without, with := ipamsim.Play(t, p, ipamsim.Options{}), ipamsim.Play(t, set, ipamsim.Options{})
		if without.Text() != with.Text() {
			t.Errorf("seed %d:\n%s\n%s", seed, without.Text(), with.Text())
		}
	}
}
