package ipam

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft/ipam/ring"
	"weft/ipam/space"
	"weft/mesh/peer"
)

// ErrStopped is the answer of an allocator whose Run has ended.
var ErrStopped = errors.New("the address allocator has stopped")

// Allocator owns this node's part of the address space. All methods may be called from any goroutine.
//
// One goroutine, Run's, changes the state: it computes a change, commits it to the store, and only then takes mu and
// makes it visible. Whoever reads takes mu for reading and so never waits for a disk or a peer.
//
//	           Run
//	            |
//	            v        10 s without a quorum
//	starting (waiting) -----------------------> unconfirmed
//	   |     |  \                                |    |
//	   |     |   `------ heard a quorum ---------'    |
//	   |     v                v                       |
//	   |  confirmed <---------'                       |
//	   |     |                                        |
//	   '-----+--- a peer knows more of our writing ---'---> stopped: final, after a restart too
//
// and from confirmed, by HandBack, to left, which ends with the run.
//
// A node's first start, which has written nothing that could be forgotten, is confirmed from the outset.
type Allocator struct {
	cfg    Config
	self   peer.ID
	log    *slog.Logger
	verify ring.Verifier
	random func() uint64
	now    func() time.Time // compared with itself only

	calls    chan func()   // work for Run's goroutine
	desk     desk          // claims and releases for it
	stopping chan struct{} // closed when Run accepts no more of it
	asks     chan struct{} // tells the asker that space may be short; capacity 1
	roster   chan struct{} // tells the remover that the roster has changed; capacity 1

	// Only Run's goroutine uses these.
	waiting  []*waiter
	woken    []netip.Addr     // addresses that have rested, whose entries are still in the store
	cooling  map[ring.ID]bool // own blocks that were taken over and have an entry in the store
	asking   bool             // the asker was told, or is at work
	storeErr error            // the last commit failed: what is stored must be read again
	start    start            // of this run

	mu       sync.RWMutex // guards all below
	phase    phase
	stopped  string // why, in phase stopped
	ring     *ring.Ring
	blocks   map[peer.ID][]netip.Prefix // of the ring, with linked IPv6
	space    *space.Space
	claims   map[netip.Addr]claim // by Claim.Addr
	byName   map[claimName]netip.Addr
	host     netip.Addr // key of the host's claim; zero while there is none
	heard    map[peer.ID]start
	served   map[peer.ID]served
	answered peer.Set     // who answered since the start, this node included
	learns   bool         // it is a novice, if it has a vote
	taught   peer.Set     // those of them who told it of all starts that they knew, and were no novices
	elders   peer.Set     // the voters when this run began; none in a node's first run
	voters   []peer.Voter // own view and theirs
	outcome  outcome      // of the last round of asking for space
	problem  string       // with the store
	heirs    []peer.ID    // who got the space, in phase left
	watchers []chan struct{}

	removed   bool                  // stopped, because this node was removed
	promised  *ring.Proposal        // the last one
	refused   map[peer.ID]uint64    // who writes nothing any more for this node, since which promise
	refusals  uint64                // grows with refused and with the view records
	opens     map[ring.ID]time.Time // own blocks that were taken over in this run, and when they may be used
	pledged   map[peer.ID]uint64    // whom others refuse and no record names, none since that number either
	forced    peer.Set              // whose removal shall not wait
	waits     []peer.ID             // for this node's own proposal
	hindrance string                // a sentence about it
}

type claimName struct{ container, ifname string }

// phase is where an allocator stands; see the drawing at Allocator.
type phase uint8

const (
	phaseStarting phase = iota
	phaseUnconfirmed
	phaseConfirmed
	phaseStopped
	phaseLeft
)

// New checks the configuration and loads the store. What was stored can be read from then on; everything else begins
// with Run.
func New(cfg Config) (*Allocator, error) {
	if err := cfg.checkPools(); err != nil {
		return nil, err
	}
	if cfg.ConfirmWait == 0 {
		cfg.ConfirmWait = defaultConfirmWait
	}
	if cfg.CoolFor == 0 {
		cfg.CoolFor = defaultCoolFor
	}
	if cfg.CoolTaken == 0 {
		cfg.CoolTaken = defaultCoolTaken
	}
	if cfg.Silence == 0 {
		cfg.Silence = defaultSilence
	}
	a := &Allocator{
		cfg:      cfg,
		self:     cfg.Signer.ID(),
		log:      cfg.Log,
		verify:   cfg.Verify,
		random:   cfg.Random,
		now:      cfg.Now,
		calls:    make(chan func()),
		stopping: make(chan struct{}),
		asks:     make(chan struct{}, 1),
		roster:   make(chan struct{}, 1),
		forced:   make(peer.Set),
		pledged:  make(map[peer.ID]uint64),
		opens:    make(map[ring.ID]time.Time),
		cooling:  make(map[ring.ID]bool),
	}
	if a.random == nil {
		a.random = rand.Uint64
	}
	if a.now == nil {
		a.now = time.Now
	}
	if a.verify == nil {
		a.verify = ring.Keys(cfg.Keys)
	}
	st, err := load(cfg.Store, cfg.Universe, cfg.Linked6)
	if err != nil {
		return nil, err
	}
	a.adopt(st)
	return a, nil
}

// setRing makes r visible; mu is held.
func (a *Allocator) setRing(r *ring.Ring) {
	a.ring = r
	a.blocks = r.Owners()
	a.space.SetBlocks(a.blocks[a.self])
	a.space.SetLate(a.late())
	if a.cfg.Linked6.IsValid() {
		for id, blocks := range a.blocks {
			for _, b := range slices.Clone(blocks) {
				blocks = append(blocks, space.LinkedBlock(a.cfg.Linked6, b))
			}
			a.blocks[id] = blocks
		}
	}
}

// Run works until ctx ends, then closes the store. It returns when everything that it started has ended.
func (a *Allocator) Run(ctx context.Context) (err error) {
	defer func() {
		close(a.stopping)
		a.abandon()
		err = errors.Join(err, a.cfg.Store.Close())
	}()
	if err := a.begin(); err != nil {
		return err
	}
	if a.wasRemoved() {
		_ = a.expel() // before anybody is asked anything; tried again when the roster is looked at
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { a.confirm(ctx) })
	wg.Go(func() { a.ask(ctx) })
	wg.Go(func() { a.remove(ctx) })

	giveUp := time.NewTimer(a.cfg.ConfirmWait)
	defer giveUp.Stop()
	wake := time.NewTimer(0)
	defer wake.Stop()
	for {
		a.settle()
		if a.storeErr != nil {
			wake.Reset(storeRetry)
		} else if next, ok := a.space.NextWake(); ok {
			wake.Reset(next.Sub(a.now()))
		}
		select {
		case f := <-a.calls:
			f()
		case <-wake.C:
		case <-giveUp.C:
			a.doubt()
		case <-ctx.Done():
			return nil
		}
	}
}

// begin makes this start known to the disk before anything else happens.
func (a *Allocator) begin() error {
	first := a.start.incarnation == 0
	next := start{a.start.incarnation + 1, a.random()}
	ops := []Op{putFormat(), putIncarnation(next.incarnation)}
	joined := first && a.self != a.cfg.Universe.Founder()
	if joined {
		ops = append(ops, putNovice())
	}
	if err := a.commit(ops...); err != nil {
		return err
	}
	a.start = next
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answered, a.taught, a.learns = peer.SetOf(a.self), peer.SetOf(), a.learns || joined
	if !first {
		a.elders = peer.SetOf()
		for _, v := range a.cfg.Network.Voters() {
			a.elders.Add(v.ID)
		}
	}
	if (first || a.cfg.Weaken.has(WithoutSync)) && a.phase == phaseStarting {
		a.phase = phaseConfirmed
	}
	return nil
}

// settle does what follows from any change: addresses that have rested are free, the host has an address, and claims
// that wait are tried again.
func (a *Allocator) settle() {
	a.mu.Lock()
	woken := a.space.Wake(a.now(), a.cfg.Lingers)
	a.mu.Unlock()
	a.woken = append(a.woken, woken...) // deleted with the next commit
	if a.storeErr != nil && a.reload() != nil {
		return
	}
	a.settleHost()
	a.tryWaiting()
	if !a.asking && a.short() {
		a.poke()
	}
}

// poke tells the asker that there is need for space, or new hope of it.
func (a *Allocator) poke() {
	a.asking = true
	select {
	case a.asks <- struct{}{}:
	default:
	}
}

// do runs f on Run's goroutine. f does not wait for anything but the disk.
func (a *Allocator) do(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case a.calls <- func() { defer close(done); f() }:
		<-done
		return nil
	case <-a.stopping:
		return ErrStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Watch makes a channel that gets a value when Blocks, Claims, HostAddress or Status may have changed. Call it once per
// consumer: it lives as long as the allocator.
func (a *Allocator) Watch() <-chan struct{} {
	ch := make(chan struct{}, 1)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watchers = append(a.watchers, ch)
	return ch
}

func (a *Allocator) notify() {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, ch := range a.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// Blocks lists who owns what, as few prefixes as possible each, those of the pools before the linked IPv6 blocks, this node too. The
// caller does not change the slices.
func (a *Allocator) Blocks() map[peer.ID][]netip.Prefix {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return maps.Clone(a.blocks)
}

// Runs lists the ring for people: who owns which block since which write. The caller does not change it.
func (a *Allocator) Runs() []ring.Run { return a.current().Runs() }

// current is the ring as it is now.
func (a *Allocator) current() *ring.Ring {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.ring
}
