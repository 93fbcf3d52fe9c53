package e2e

import (
	"fmt"
	"testing"
	"time"

	"weft/test/netlab"
)

// The cables of two machines of three go down and up every five seconds for a minute, now together and now in turns, while
// pods are attached on all of them. Afterwards all is whole within 30 s, no address is given twice, and no process was
// started anew.
func TestCablesThatComeAndGo(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.form()
	pods := s.pods()
	s.connected(pods)
	watch := s.watch(s.pools()...)
	wires := map[string]int{}
	for _, m := range s.machines {
		wires[m.Name()] = m.Wire()
	}

	const every, rounds = 5 * time.Second, 6
	cables := [...][]*netlab.Link{{s.sites.LinkB}, {s.sites.LinkB, s.sites.LinkC}, {s.sites.LinkC}}
	for round := range rounds {
		down := cables[round%len(cables)]
		for _, k := range down {
			k.Down()
		}
		turn := time.NewTimer(every)
		p, err := s.attachSoon(s.machines[round%len(s.machines)], fmt.Sprint("down", round))
		s.must(err)
		pods = append(pods, p)
		<-turn.C
		for _, k := range down {
			k.Up()
		}
		<-time.After(every)
	}

	began := time.Now()
	s.whole()
	s.connected(pods)
	s.took("cables that came and went for a minute (bar: 30 s)", began)
	s.distinct()
	for _, m := range s.machines {
		select {
		case <-m.Daemon.Done():
			t.Errorf("the daemon on %s has ended", m)
		default:
		}
		if got := m.Wire(); got != wires[m.Name()] || got == 0 {
			t.Errorf("the wire of %s is process %d, it was %d", m, got, wires[m.Name()])
		}
	}
	s.sealed(watch)
}
