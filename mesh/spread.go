package mesh

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"weft/crypto/tlv"
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

	deafAfter   = 5 * time.Second // without a datagram from anybody: digests go over streams
	swapTime    = 5 * time.Second // of such an exchange
	swapsAtOnce = 4

	pullsAtOnce = 8
	pullsOfOne  = 2 // of one state, of those that began within pullSoon
	pullSoon    = time.Second
	pullPause   = 50 * time.Millisecond // between pulls from one member
	hearPause   = 10 * time.Millisecond // between digests of one member that are looked at
	maxParts    = 8                     // of a large state, pulled one after the other
	pullMemory  = 30 * time.Second      // a pull that left the states different is not repeated within
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

// told is what a member last told, and when.
type told struct {
	sums map[string]sum
	at   time.Time
}

type source struct {
	from peer.ID
	name string
}

// trial remembers a pull that did not make the states equal.
type trial struct {
	theirs, ours sum
	at           time.Time
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
			for _, id := range s.next() {
				pulls.Go(func() { s.pullAll(ctx, id) })
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

// begin marks those of ids with whom no swap is under way.
func (s *syncer) begin(ids []peer.ID) []peer.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(ids, func(id peer.ID) bool {
		if s.swapping.Has(id) || len(s.swapping) == swapsAtOnce {
			return true
		}
		s.swapping.Add(id)
		return false
	})
}

// swap tells and hears digests over a stream: what is done while datagrams do not come through, as in the first moments
// of a node. Both ends know afterwards what to pull, and each other's record: without it the other could neither pull nor
// accept our datagrams, and we would wait for each other for ever.
func (s *syncer) swap(ctx context.Context, with peer.ID) {
	ctx, cancel := context.WithTimeout(ctx, swapTime)
	defer cancel()
	ans, err := s.mesh.call(ctx, with, methodDigests, s.introduction(peer.ID{}), MaxMessage)
	if err == nil {
		err = s.meet(with, ans)
	}
	if err != nil {
		s.mesh.log.Debug("digests not exchanged", "peer", with, "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.swapping, with)
}

// serveDigests is the handler of methodDigests.
func (s *syncer) serveDigests(_ context.Context, from peer.ID, req []byte) ([]byte, error) {
	if err := s.meet(from, req); err != nil {
		return nil, err
	}
	return s.introduction(peer.ID{}), nil
}

// introduction is our digests with our record; from is zero where the carrier names the sender.
func (s *syncer) introduction(from peer.ID) []byte {
	return tlv.Append(digestMessage(from, s.digests()), digestRecord, s.mesh.ownRaw())
}

// meet takes an introduction.
func (s *syncer) meet(from peer.ID, b []byte) error {
	_, told, err := parseDigests(b)
	if err != nil {
		return err
	}
	s.mesh.takeRecord(b)
	s.hear(from, told)
	return nil
}

// hear takes a member's digests. Only the last ones count, so a flood fills nothing.
func (s *syncer) hear(from peer.ID, d map[string]sum) {
	s.mu.Lock()
	s.told[from] = told{d, time.Now()}
	s.mu.Unlock()
	signal(s.news)
}

// next picks members to pull from, and marks them.
func (s *syncer) next() []peer.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []peer.ID
	for id := range s.told {
		if len(s.pulling) == pullsAtOnce {
			break
		}
		if !s.pulling.Has(id) {
			s.pulling.Add(id)
			ids = append(ids, id)
		}
	}
	return ids
}

// pullAll pulls what differs from what a member told.
func (s *syncer) pullAll(ctx context.Context, from peer.ID) {
	s.mu.Lock()
	told := s.told[from]
	delete(s.told, from)
	order := slices.Clone(s.order)
	s.mu.Unlock()

	lacks, pause := false, hearPause
	for _, name := range order {
		theirs, ok := told.sums[name]
		if !ok || s.inVain(source{from, name}, theirs) {
			continue
		}
		switch wait, pull := s.patience(name, told.at); {
		case !pull:
			continue
		case wait > 0:
			s.putOff(from, name, told, wait)
			continue
		}
		began, ok := s.enter(name)
		if !ok {
			s.putOff(from, name, told, pullPause)
			continue
		}
		pause = pullPause
		differs, err := s.pullOne(ctx, from, name)
		s.leave(name, began)
		if err != nil {
			s.mesh.count.pullsFailed.Add(1)
			s.mesh.log.Debug("state not pulled", "peer", from, "state", name, "err", err)
			break // nothing else will be got from it now
		}
		lacks = lacks || differs
	}
	if lacks {
		s.tellTo(from) // it lacks something of ours, or will find what is the matter
	}
	sleep(ctx, pause)
	s.mu.Lock()
	delete(s.pulling, from)
	s.mu.Unlock()
	signal(s.news)
}

// enter reports whether a state may be pulled now: several members that tell of one change are not all asked for it. One
// that does not answer soon keeps nobody from asking another.
func (s *syncer) enter(name string) (began time.Time, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	began, fresh := time.Now(), 0
	for _, t := range s.busy[name] {
		if began.Sub(t) < pullSoon {
			fresh++
		}
	}
	if fresh >= pullsOfOne {
		return began, false
	}
	s.busy[name] = append(s.busy[name], began)
	return began, true
}

func (s *syncer) leave(name string, began time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.busy[name], began); i >= 0 {
		s.busy[name] = slices.Delete(s.busy[name], i, i+1)
	}
}

// putOff has one state looked at again after a while. What is old is dropped: the members tell again.
func (s *syncer) putOff(from peer.ID, name string, t told, wait time.Duration) {
	if time.Since(t.at) > repairEvery {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.later[from].sums == nil {
		s.later[from] = told{map[string]sum{}, t.at}
	}
	s.later[from].sums[name] = t.sums[name]
	if s.retry == nil {
		s.retry = time.AfterFunc(wait, s.takeUp)
	}
}

// dropPutOff ends the timer with the run.
func (s *syncer) dropPutOff() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.retry != nil {
		s.retry.Stop()
	}
}

// takeUp looks at what was put off, unless the member has told something newer.
func (s *syncer) takeUp() {
	s.mu.Lock()
	s.retry = nil
	for from, t := range s.later {
		if s.told[from].sums == nil {
			s.told[from] = t
		}
	}
	clear(s.later)
	s.mu.Unlock()
	signal(s.news)
}

// pullOne pulls one state, in several parts when it is large. It tells whether the states differ even so.
func (s *syncer) pullOne(ctx context.Context, from peer.ID, name string) (differs bool, err error) {
	r := s.replica(name)
	for range maxParts {
		ours := sumOf(r)
		s.mesh.count.pulls.Add(1)
		theirs, more, err := s.pull(ctx, from, name, r)
		if theirs == (sum{}) {
			return false, err
		}
		if err != nil {
			s.mesh.count.malformed.Add(1)
			s.mesh.log.Debug("not all of a state was taken", "peer", from, "state", name, "err", err)
		}
		after := sumOf(r)
		if after != ours {
			s.changed(name)
		}
		switch {
		case after == theirs:
			return false, nil
		case after == ours:
			s.mu.Lock()
			s.tried[source{from, name}] = trial{theirs, after, time.Now()}
			s.mu.Unlock()
			return true, nil
		case !more:
			return true, nil
		}
	}
	return true, nil
}

// inVain reports whether the states are equal, or such as they were when pulling did not help.
func (s *syncer) inVain(src source, theirs sum) bool {
	r := s.replica(src.name)
	ours := sumOf(r)
	if theirs == ours {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tried[src]
	return ok && t.theirs == theirs && t.ours == ours && time.Since(t.at) < pullMemory
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
