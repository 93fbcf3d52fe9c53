package ipamsim

import (
	"cmp"
	"container/heap"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/mesh/peer"
)

// Weather is what the fabric does to messages.
type Weather struct {
	Loss  float64       // of a message
	Twice float64       // delivered two times
	Late  float64       // held back for up to LateBy, whatever happens meanwhile
	Delay time.Duration // of an ordinary message, at most
}

const (
	leastDelay = 200 * time.Microsecond
	lateBy     = 5 * time.Minute
)

// Setup is what a World is made of.
type Setup struct {
	Seed     uint64
	Prefix   netip.Prefix // the pool; the zero value means 10.0.0.0/22
	AtomBits int          // 0 means that an atom has 16 addresses: 64 atoms in the default pool
	Strict   bool         // machines start strictly
	Weather  Weather
	Gossip   time.Duration // how often a machine compares its state with another's; 0 means 2 s
	CoolFor  time.Duration // of a released address; 0 means 5 s

	CoolTaken time.Duration // of a block that was taken over; 0 means 20 s
	Silence   time.Duration // as in ipam.Config; 0 means 1 min

	Configure func(*ipam.Config) // changes what an allocator is made with; for tests of weakened rules
	Lone      bool               // sponsors admit on their own, without a quorum: the weakened rule R12
	Log       func(format string, args ...any)
}

// World is a cluster with its network, its disks and its people. It is made and used by the first goroutine of a
// synctest bubble only.
type World struct {
	// Fate, where it is set, is asked about each message. Kinds are the methods of ipam's calls, "answer " and a method,
	// "digest", "roster" and "state" for gossip, "join" and "join answer".
	Fate func(from, to *Machine, kind string) Fate

	setup    Setup
	universe *ring.Universe
	machines []*Machine
	byID     map[peer.ID][]*Machine // a copied disk makes two of one identity
	began    time.Time
	quiet    *slog.Logger

	mu      sync.Mutex // guards outbox, rosters, and what Machines share with their allocators
	outbox  []post
	rosters map[uint64]*roster // by sum
	kick    chan struct{}      // capacity 1: the outbox is not empty

	queue queue
	made  uint64 // events so far, for their order
	timer *time.Timer

	cuts    map[[2]int]bool // by index: from, to
	links   map[[2]int]uint64
	version int // changes with reachability: answers about who is alive are kept until then

	audit      audit
	hash       uint64
	counts     Counts
	mending    bool          // Recover is at work
	recovering time.Duration // since when
	finished   bool
}

// Counts is what happened.
type Counts struct {
	Events   int
	Messages int
	Bytes    int
	Lost     int
	Claims   int
	Refused  int
	Joins    int
	Removals int
}

// post is what a machine's goroutine hands to the World: run is called by the World's own goroutine.
type post struct {
	from, to int
	kind     string
	content  uint64
	run      func()
}

// event is something that happens at a time.
type event struct {
	at  time.Duration
	nth uint64
	run func()
}

type queue []event

func (q *queue) Len() int      { return len(*q) }
func (q *queue) Swap(i, j int) { (*q)[i], (*q)[j] = (*q)[j], (*q)[i] }
func (q *queue) Push(x any)    { *q = append(*q, x.(event)) }

func (q *queue) Less(i, j int) bool {
	a, b := (*q)[i], (*q)[j]
	return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.nth, b.nth)) < 0
}

func (q *queue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

// New makes a World with its founder, machine 0, which is up.
func New(s Setup) (*World, error) {
	if !s.Prefix.IsValid() {
		s.Prefix = netip.MustParsePrefix("10.0.0.0/22")
	}
	s.AtomBits = cmp.Or(s.AtomBits, s.Prefix.Addr().BitLen()-4)
	s.Gossip = cmp.Or(s.Gossip, 2*time.Second)
	s.CoolFor = cmp.Or(s.CoolFor, 5*time.Second)
	s.CoolTaken = cmp.Or(s.CoolTaken, 20*time.Second)
	s.Silence = cmp.Or(s.Silence, time.Minute)
	w := &World{
		rosters: make(map[uint64]*roster),
		setup:   s,
		byID:    make(map[peer.ID][]*Machine),
		began:   time.Now(),
		quiet:   slog.New(slog.DiscardHandler),
		kick:    make(chan struct{}, 1),
		cuts:    make(map[[2]int]bool),
		links:   make(map[[2]int]uint64),
		hash:    fnvOffset,
	}
	w.timer = time.NewTimer(time.Hour)
	founder := newKey(s.Seed, 0)
	u, err := ring.NewUniverse([32]byte{1}, founder.id, []ring.Pool{{Prefix: s.Prefix, AtomBits: s.AtomBits}})
	if err != nil {
		return nil, err
	}
	w.universe = u
	w.audit.init(w)
	m := w.newMachine(founder)
	m.roster = (*roster)(nil).with(member{id: m.key.id, voter: true, issuer: true})
	m.member = true
	w.Start(m)
	return w, nil
}

// Machines lists all machines that ever were, by index.
func (w *World) Machines() []*Machine { return w.machines }

// Now is the time since the World began.
func (w *World) Now() time.Duration { return time.Since(w.began) }

// Hash is a function of all that happened: who sent what kind of message to whom, and when it arrived.
func (w *World) Hash() uint64 { return w.hash }

// Counts is what happened so far.
func (w *World) Counts() Counts { return w.counts }

// Err is the first rule that was broken.
func (w *World) Err() error { return w.audit.err }

func (w *World) logf(format string, args ...any) {
	if w.setup.Log != nil {
		w.setup.Log("%10.4fs  %s", w.Now().Seconds(), fmt.Sprintf(format, args...))
	}
}

// after makes an event.
func (w *World) after(d time.Duration, run func()) {
	w.made++
	heap.Push(&w.queue, event{w.Now() + d, w.made, run})
}

// send is called by machines' goroutines.
func (w *World) send(p post) {
	w.mu.Lock()
	w.outbox = append(w.outbox, p)
	w.mu.Unlock()
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// Run lets time pass.
func (w *World) Run(d time.Duration) { w.Until(d, func() bool { return false }) }

// Until lets time pass until done, which is asked after each event, or for d at most; it reports whether it was done. It
// ends early when a rule is broken.
func (w *World) Until(d time.Duration, done func() bool) bool {
	end := w.Now() + d
	for {
		w.settle()
		if w.audit.err != nil {
			return false
		}
		if done() {
			return true
		}
		now := w.Now()
		if len(w.queue) > 0 && w.queue[0].at <= now {
			e := heap.Pop(&w.queue).(event)
			w.counts.Events++
			e.run()
			continue
		}
		if now >= end {
			return false
		}
		next := end
		if len(w.queue) > 0 {
			next = min(next, w.queue[0].at)
		}
		w.timer.Reset(next - now)
		select {
		case <-w.timer.C:
		case <-w.kick:
		}
	}
}

// settle waits until no goroutine has anything to do, and takes what they sent.
func (w *World) settle() {
	for {
		synctest.Wait()
		w.mu.Lock()
		posts := w.outbox
		w.outbox = nil
		w.mu.Unlock()
		select {
		case <-w.kick:
		default:
		}
		if len(posts) == 0 {
			break
		}
		slices.SortStableFunc(posts, func(a, b post) int {
			return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.kind, b.kind), cmp.Compare(a.to, b.to),
				cmp.Compare(a.content, b.content))
		})
		for _, p := range posts {
			p.run()
		}
	}
	w.audit.look()
}

const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

// note makes a happening part of the hash.
func (w *World) note(from, to int, kind string) {
	h := w.hash
	add := func(b byte) { h = (h ^ uint64(b)) * fnvPrime }
	for _, n := range [...]uint64{uint64(w.Now()), uint64(from), uint64(to)} {
		for ; n > 0; n >>= 8 {
			add(byte(n))
		}
		add(0)
	}
	for i := range len(kind) {
		add(kind[i])
	}
	w.hash = h
}

func hashOf(b []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(b)
	return h.Sum64()
}

// Close stops all machines and waits for the end of everything that was started.
func (w *World) Close() {
	w.finished = true
	for _, m := range w.machines {
		m.kill()
	}
	for _, m := range w.machines {
		for _, l := range m.lives {
			l.wg.Wait()
		}
	}
	w.timer.Stop()
}

// uint64Of reads numbers out of a peer.ID for chance.
func uint64Of(id peer.ID) uint64 { return binary.BigEndian.Uint64(id[:8]) }

var errLost = errors.New("no answer")

func ended(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return errLost
}

// Plus adds up what happened in two lives.
func (c Counts) Plus(d Counts) Counts {
	return Counts{
		c.Events + d.Events, c.Messages + d.Messages, c.Bytes + d.Bytes, c.Lost + d.Lost, c.Claims + d.Claims,
		c.Refused + d.Refused, c.Joins + d.Joins, c.Removals + d.Removals,
	}
}
