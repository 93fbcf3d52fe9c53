package mesh

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"weft/mesh/peer"
)

// Timing of spreading.
const (
	spreadFanout = 3                      // members told at once
	spreadRounds = 3                      // times that a change is told, to random members each
	spreadDelay  = 5 * time.Millisecond   // changes within it are told together
	spreadGap    = 25 * time.Millisecond  // at least, between one telling and the next
	spreadPause  = 100 * time.Millisecond // between rounds
	repairEvery  = 2 * time.Second        // one random member is told, changed or not
)

// syncer tells digests to others, listens to theirs, and pulls what differs.
type syncer struct {
	mesh *Mesh
	wake chan struct{} // capacity 1: a change to tell
	news chan struct{} // capacity 1: a member told something, or a pull has ended

	mu       sync.Mutex // guards all below
	replicas map[string]Replica
	order    []string // of registration: later ones may need earlier ones
	rounds   int      // in which the last change is still to be told
	told     map[peer.ID]told
	pulling  peer.Set
	busy     map[string][]time.Time // when the pulls under way began, by state
	swapping peer.Set
	tried    map[source]trial
	later    map[peer.ID]told // put off
	retry    *time.Timer      // will see to it; nil: nothing is put off

	pieces    []*piece // to tell, oldest first
	seen      map[sum]struct{}
	seenOrder []sum // a ring of what is seen
	seenNext  int
	lively    map[string]lively

	letters chan letter
}

func newSyncer(m *Mesh) *syncer {
	return &syncer{
		mesh:     m,
		wake:     make(chan struct{}, 1),
		news:     make(chan struct{}, 1),
		replicas: map[string]Replica{},
		told:     map[peer.ID]told{},
		pulling:  peer.Set{},
		busy:     map[string][]time.Time{},
		swapping: peer.Set{},
		tried:    map[source]trial{},
		later:    map[peer.ID]told{},
		seen:     map[sum]struct{}{},
		lively:   map[string]lively{},
		letters:  make(chan letter, newsInbox),
	}
}

func (s *syncer) register(name string, r Replica) {
	if len(name) == 0 || len(name) > maxReplicaName {
		panic(fmt.Sprintf("mesh: a replica's name has 1 to %d bytes: %q", maxReplicaName, name))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replicas[name] = r
	if !slices.Contains(s.order, name) {
		s.order = append(s.order, name)
	}
}

func (s *syncer) replica(name string) Replica {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.replicas[name]
}

func (s *syncer) changed(name string) {
	s.mu.Lock()
	known := s.replicas[name] != nil
	if known {
		s.rounds = spreadRounds
		clear(s.tried) // what was refused may be welcome now
	}
	s.mu.Unlock()
	if !known {
		return
	}
	signal(s.wake)
	s.mesh.poke()
}

// run tells and pulls until ctx ends.
func (s *syncer) run(ctx context.Context) {
	var pulls sync.WaitGroup
	defer pulls.Wait()
	pulls.Go(func() { s.runNews(ctx) })
	defer s.dropPutOff()
	var last time.Time // when it was told
	due := time.Now().Add(jitter(repairEvery))
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
			// Changes without end are told steadily: they neither put it off nor make it more frequent.
			soon := time.Now().Add(spreadDelay)
			if after := last.Add(spreadGap); soon.Before(after) {
				soon = after
			}
			if soon.Before(due) {
				due = soon
				timer.Reset(time.Until(due))
			}
		case <-timer.C:
			ids, again := s.turn()
			last = time.Now()
			due = last.Add(again)
			timer.Reset(again)
			if !s.mesh.deaf() {
				s.tellRound(ids)
				continue
			}
			for _, id := range s.begin(ids) {
				pulls.Go(func() { s.swap(ctx, id) })
			}
		case <-s.news:
			for _, e := range s.next() {
				pulls.Go(func() { s.pullAll(ctx, e) })
			}
		}
	}
}

// turn picks as many as it is the turn of, and says when the next turn is.
func (s *syncer) turn() (ids []peer.ID, again time.Duration) {
	s.mu.Lock()
	fanout, again := 1, jitter(repairEvery)
	if s.rounds > 0 {
		fanout = spreadFanout
		if s.rounds--; s.rounds == 0 && len(s.pieces) > 0 && !s.mesh.deaf() {
			s.rounds = 1 // not all could be told at once
		}
		if s.rounds > 0 {
			again = spreadPause
		}
	}
	s.mu.Unlock()
	return s.mesh.someAlive(fanout), again
}

// tellRound tells digests and news.
func (s *syncer) tellRound(ids []peer.ID) {
	if len(ids) == 0 {
		return
	}
	for _, b := range s.messages() {
		for _, id := range ids {
			s.mesh.send(id, datagramDigest, b)
		}
	}
}

// tellTo tells digests.
func (s *syncer) tellTo(ids ...peer.ID) {
	if len(ids) == 0 {
		return
	}
	b := digestMessage(peer.ID{}, s.digests())
	for _, id := range ids {
		s.mesh.send(id, datagramDigest, b)
	}
}

// signal fills a channel of capacity 1.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// sleep waits, and reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// jitter is d give or take a quarter.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + time.Duration(rand.Int64N(int64(d/2)+1))
}
