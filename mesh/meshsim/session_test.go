package meshsim_test

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/peer"
	"weft/mesh/sparse"
)

// What a session costs: two datagrams of a handshake, and the time until the second has come.
const handshakeSize = 180

// sessions is what a node's wire has, in a world where traffic opens them.
type sessions struct {
	mu     sync.Mutex // guards all below
	book   *sparse.Book
	known  int // members that the book was told of
	swept  time.Time
	opened int
	ready  map[peer.ID]time.Time
}

func (s *sessions) reset(above int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.book, s.known, s.ready = nil, 0, nil
	if above > 0 {
		s.book, s.ready = sparse.New(0), map[peer.ID]time.Time{}
	}
}

// count is how many are open.
func (s *sessions) count(all int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.book == nil {
		return all
	}
	s.book.Sleep(time.Now())
	return s.book.Count()
}

// touch notes a datagram to or from a peer, and tells when the session is ready and whether this opened it.
func (n *Node) touch(id peer.ID, ready time.Time) (at time.Time, opened bool) {
	s, now := &n.sessions, time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.book == nil {
		return time.Time{}, false
	}
	if ids := *n.world.members.Load(); len(ids) != s.known {
		s.known = len(ids)
		s.book.Set(sparse.Wanted(n.world.Spec.Sparse, len(ids), s.book.Sparse()), now)
		s.book.Members(ids)
		if !n.dialable {
			var pinned []peer.ID
			for _, h := range *n.homes.Load() {
				pinned = append(pinned, h.ID)
			}
			s.book.Pin(pinned, now)
		}
	}
	if now.Sub(s.swept) >= time.Second {
		s.swept = now
		for _, id := range s.book.Sleep(now) {
			delete(s.ready, id)
		}
	}
	if s.book.Touch(id, sparse.Control, now) {
		s.opened++
		s.ready[id] = ready
		return ready, true
	}
	return s.ready[id], false
}

// session opens the session between two nodes if it is closed, and tells how long that takes yet.
func (n *Node) session(to *Node) time.Duration {
	if n.world.Spec.Sparse == 0 {
		return 0
	}
	ready := time.Now().Add(3 * n.world.Spec.Conditions.Delay)
	at, opened := n.touch(to.ID, ready)
	to.touch(n.ID, ready)
	if opened {
		n.meter.packet(handshakeSize)
		to.meter.packet(handshakeSize)
	}
	return max(0, time.Until(at))
}

// Sessions that traffic opens carry membership as well as sessions that are open always: nobody is called dead, and a
// node has few of them.
func TestSparseSessionsCarryMembership(t *testing.T) {
	skipWithRace(t)
	synctest.Test(t, func(t *testing.T) {
		w := New(t, Spec{NAT: 0.75, Conditions: wan(), Seed: 10, Sparse: 20})
		defer w.End()
		w.Storm(79, 4*time.Second)
		t.Logf("80 nodes agree after %v", w.settle(2*time.Minute))
		time.Sleep(3 * time.Minute)
		open, opened := 0, 0
		for _, n := range w.Nodes {
			open += n.sessions.count(79)
			opened += n.sessions.opened
		}
		t.Logf("%.1f of 79 sessions are open on the mean node, it opened %.2f a minute", float64(open)/80, float64(opened)/80/3)
		t.Log(w.memory())
		if told, untrue, examples := w.Deaths(); told > 0 {
			t.Errorf("%d deaths told, %d false: %v", told, untrue, examples)
		}
	})
}
