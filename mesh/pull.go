package mesh

import (
	"context"
	"slices"
	"time"

	"weft/mesh/peer"
)

// Timing and limits of pulling.
const (
	pullsAtOnce = 8
	pullsOfOne  = 2 // of one state, of those that began within pullSoon
	pullSoon    = time.Second
	pullPause   = 50 * time.Millisecond // between pulls from one member
	maxParts    = 8                     // of a large state, pulled one after the other
	pullMemory  = 30 * time.Second      // a pull that left the states different is not repeated within
)

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

// hear takes a member's digests. Only the last ones count, so a flood fills nothing.
func (s *syncer) hear(from peer.ID, d map[string]sum) {
	s.mu.Lock()
	s.told[from] = told{d, time.Now()}
	s.mu.Unlock()
	signal(s.news)
}

// errand is what to pull from a member that told something.
type errand struct {
	from  peer.ID
	told  told
	names []string
}

// next picks members to pull from, and marks them. Most of what members tell is equal, or will be when the news has come
// that is under way: that is settled here, at the price of a few comparisons.
func (s *syncer) next() []errand {
	ours := s.digests()
	s.mu.Lock()
	defer s.mu.Unlock()
	var errands []errand
	for id, t := range s.told {
		if len(s.pulling) == pullsAtOnce {
			break
		}
		if s.pulling.Has(id) {
			continue
		}
		delete(s.told, id)
		if names := s.worthPulling(id, t, ours); len(names) > 0 {
			s.pulling.Add(id)
			errands = append(errands, errand{id, t, names})
		}
	}
	return errands
}

// worthPulling lists the states to pull from a member now, in the order of their registration, and puts off those that
// are to be looked at later. It is called with the lock held.
func (s *syncer) worthPulling(from peer.ID, t told, ours map[string]sum) (names []string) {
	for _, name := range s.order {
		theirs, ok := t.sums[name]
		if !ok || theirs == ours[name] || s.vain(source{from, name}, theirs, ours[name]) {
			continue
		}
		switch wait, pull := s.patience(name, t.at); {
		case wait > 0:
			s.putOff(from, name, t, wait)
		case pull:
			names = append(names, name)
		}
	}
	return names
}

// pullAll pulls what was picked, unless it has become equal meanwhile.
func (s *syncer) pullAll(ctx context.Context, e errand) {
	lacks, pause := false, time.Duration(0)
	for _, name := range e.names {
		if s.inVain(source{e.from, name}, e.told.sums[name]) {
			continue
		}
		began, ok := s.enter(name)
		if !ok {
			s.mu.Lock()
			s.putOff(e.from, name, e.told, pullPause)
			s.mu.Unlock()
			continue
		}
		pause = pullPause
		differs, err := s.pullOne(ctx, e.from, name)
		s.leave(name, began)
		if err != nil {
			s.mesh.count.pullsFailed.Add(1)
			s.mesh.log.Debug("state not pulled", "peer", e.from, "state", name, "err", err)
			break // nothing else will be got from it now
		}
		lacks = lacks || differs
	}
	if lacks {
		s.tellTo(e.from) // it lacks something of ours, or will find what is the matter
	}
	if pause > 0 {
		sleep(ctx, pause)
	}
	s.mu.Lock()
	delete(s.pulling, e.from)
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

// putOff has one state looked at again after a while. What is old is dropped: the members tell again. It is called with
// the lock held.
func (s *syncer) putOff(from peer.ID, name string, t told, wait time.Duration) {
	if time.Since(t.at) > repairEvery {
		return
	}
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
	return s.vain(src, theirs, ours)
}

// vain is called with the lock held.
func (s *syncer) vain(src source, theirs, ours sum) bool {
	t, ok := s.tried[src]
	return ok && t.theirs == theirs && t.ours == ours && time.Since(t.at) < pullMemory
}
