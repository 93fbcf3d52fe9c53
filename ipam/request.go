package ipam

import (
	"cmp"
	"context"
	"crypto/rand"
	"slices"
	"sync"
	"time"

	"weft/mesh/peer"
)

const (
	askUsed  = 75 // per cent of own addresses in use, from which on more are asked for
	askFirst = 250 * time.Millisecond
	// askLast and restLast bound the pause between rounds: for a node that has nothing to give, and for one that asks
	// ahead of need.
	askLast  = 5 * time.Second
	restLast = time.Minute
	// askPatience bounds the time that a lender gets for one answer: callTimeout at first, twice as long after each time
	// that it was silent although it is said to be alive. On machines that are slow for a while nobody would ever get
	// anything otherwise, for each answer would come a moment after the one who asked had gone.
	askPatience = 8 * callTimeout
)

// outcome is what a round of asking for space came to.
type outcome struct {
	rounds int // ended so far
	lacks  map[peer.ID]lack
}

// hopeless reports whether it is of no use that a claim waits for an address: a whole round that began after the first
// since it came has found that nobody has anything to lend, everybody has answered, and no address of this node's own
// becomes free in time.
func (a *Allocator) hopeless(w *waiter) bool {
	if a.outcome.rounds < w.rounds+2 { // the round that was under way may have asked too early
		return false
	}
	for id := range a.blocks {
		if l, asked := a.outcome.lacks[id]; id != a.self && (!asked || l != lackSpace) {
			return false
		}
	}
	next, rests := a.space.NextWake()
	deadline, ok := w.ctx.Deadline()
	return !rests || ok && next.After(deadline)
}

// short reports whether more space is wanted: there is none, or most of it is in use.
func (a *Allocator) short() bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.phase == phaseStopped || a.phase == phaseLeft {
		return false
	}
	used, free := a.space.Count()
	return used*100 >= (used+free)*askUsed
}

// empty reports whether there is no address to give at all.
func (a *Allocator) empty() bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	_, ok := a.space.Lowest()
	return !ok
}

// ask asks others for space whenever it is short, ahead of need, so that claims do not wait for the network.
func (a *Allocator) ask(ctx context.Context) {
	d := dealings{requests: make(map[peer.ID]requestID), patience: make(map[peer.ID]time.Duration)}
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.asks:
		}
		for pause := askFirst; a.wants(ctx); pause = min(2*pause, restLast) {
			lacks, got := a.askRound(ctx, d)
			if ctx.Err() != nil {
				return
			}
			// When the run ends before it can be told, nobody asks.
			_ = a.do(ctx, func() {
				a.mu.Lock()
				defer a.mu.Unlock()
				a.outcome = outcome{a.outcome.rounds + 1, lacks}
				a.asking = !got
			})
			a.notify()
			if got {
				break
			}
			limit := restLast
			if a.empty() {
				limit = askLast
			}
			if !a.rest(ctx, min(pause, limit)) {
				return
			}
		}
	}
}

// wants reports whether there is a reason to ask. Run's goroutine decides it, so that no poke is lost in between; those
// before are answered by the round that follows.
func (a *Allocator) wants(ctx context.Context) (wants bool) {
	err := a.do(ctx, func() {
		wants = a.short()
		a.asking = wants
		select {
		case <-a.asks:
		default:
		}
	})
	return err == nil && wants
}

// rest waits for d, or only for askFirst when there is reason to ask again; false when ctx has ended.
func (a *Allocator) rest(ctx context.Context, d time.Duration) bool {
	least, most := time.NewTimer(min(d, askFirst)), time.NewTimer(d)
	defer least.Stop()
	defer most.Stop()
	select {
	case <-least.C:
	case <-ctx.Done():
		return false
	}
	select {
	case <-most.C:
	case <-a.asks:
	case <-ctx.Done():
		return false
	}
	return true
}

// dealings is what is remembered of lenders from round to round.
type dealings struct {
	requests map[peer.ID]requestID     // that were not answered
	patience map[peer.ID]time.Duration // for one answer, of those that were silent
}

// timeFor is how long to wait for an answer of a lender.
func (d dealings) timeFor(id peer.ID) time.Duration { return max(callTimeout, d.patience[id]) }

// learn notes whether a lender answered. One that is dead gets no more time: it would only hold up the round.
func (d dealings) learn(id peer.ID, l lack, alive bool) {
	if l == lackUnreachable && alive {
		d.patience[id] = min(2*d.timeFor(id), askPatience)
	} else {
		delete(d.patience, id)
	}
}

// askRound asks all members that own space, those who own most first: what each could lend, then whoever could lend
// most for it. It ends with the first block.
func (a *Allocator) askRound(ctx context.Context, d dealings) (lacks map[peer.ID]lack, got bool) {
	lacks = make(map[peer.ID]lack)
	living, dead, others := a.lenders()
	for _, id := range others {
		lacks[id] = lackUnreachable
	}
	for chunk := range slices.Chunk(slices.Concat(living, dead), parallel) {
		answers := make([]spareAnswer, len(chunk))
		var asked sync.WaitGroup
		for i, id := range chunk {
			asked.Go(func() { answers[i] = a.askSpare(ctx, id, d.timeFor(id)) })
		}
		asked.Wait()
		sizes := make(map[peer.ID]uint64)
		for i, id := range chunk {
			if answers[i].reason == lackNothing {
				sizes[id] = answers[i].size
			} else {
				lacks[id] = answers[i].reason
				d.learn(id, answers[i].reason, slices.Contains(living, id))
			}
		}
		best := slices.DeleteFunc(chunk, func(id peer.ID) bool { _, ok := sizes[id]; return !ok })
		slices.SortStableFunc(best, func(x, y peer.ID) int { return cmp.Compare(sizes[y], sizes[x]) })
		for _, id := range best {
			reason := a.askFor(ctx, id, d)
			d.learn(id, reason, slices.Contains(living, id))
			if reason == lackNothing {
				return lacks, true
			}
			lacks[id] = reason
		}
	}
	return lacks, false
}

// lenders lists the members to ask for space: the living and then the dead, those who own most first. Others own space
// too, but have been removed or are not known yet. Who owns nothing is none of them.
func (a *Allocator) lenders() (living, dead, others []peer.ID) {
	a.mu.RLock()
	blocks := a.blocks
	a.mu.RUnlock()
	states := make(map[peer.ID]peer.State)
	for _, p := range a.cfg.Network.Peers() {
		states[p.ID] = p.State
	}
	for id := range blocks {
		switch state, known := states[id]; {
		case id == a.self:
		case !known || state == peer.Removed:
			others = append(others, id)
		case state == peer.Dead:
			dead = append(dead, id)
		default:
			living = append(living, id)
		}
	}
	richest := func(x, y peer.ID) int {
		return cmp.Or(cmp.Compare(addresses(blocks[y]), addresses(blocks[x])), x.Compare(y))
	}
	slices.SortFunc(living, richest)
	slices.SortFunc(dead, richest)
	return living, dead, others
}

// askSpare asks one member what it could lend. Who has nothing tells who owns what by now, where that differs.
func (a *Allocator) askSpare(ctx context.Context, id peer.ID, patience time.Duration) spareAnswer {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req := spareRequest{a.current().Digest()}
	b, err := a.cfg.Network.Call(ctx, id, methodSpare, req.encode())
	if err != nil {
		a.log.Debug("no answer about spare space", "peer", id, "err", err)
		return spareAnswer{reason: lackUnreachable}
	}
	answer, err := parseSpareAnswer(b)
	if err != nil {
		a.log.Warn("unreadable answer about spare space", "peer", id, "err", err)
		return spareAnswer{reason: lackUnreachable}
	}
	if answer.ring != nil {
		if _, err := a.merge(ctx, answer.ring, nil); err != nil {
			a.log.Warn("ring not merged", "peer", id, "err", err)
		}
	}
	return answer
}

// askFor asks one member for a block. A request whose answer was lost is repeated under its name, so that the lender
// gives no second block for it.
func (a *Allocator) askFor(ctx context.Context, id peer.ID, d dealings) lack {
	request, repeated := d.requests[id]
	if !repeated {
		rand.Read(request[:])
		d.requests[id] = request
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeFor(id))
	defer cancel()
	b, err := a.cfg.Network.Call(ctx, id, methodGrant, grantRequest{request}.encode())
	if err != nil {
		a.log.Debug("no answer to a request for space", "peer", id, "err", err)
		return lackUnreachable
	}
	delete(d.requests, id)
	answer, err := parseGrantAnswer(b)
	if err != nil {
		a.log.Warn("unreadable answer to a request for space", "peer", id, "err", err)
		return lackUnreachable
	}
	if answer.ring == nil {
		return max(answer.reason, lackSpace)
	}
	before := a.owned()
	rejected, err := a.merge(ctx, answer.ring, nil)
	if err == nil {
		err = leftOut(rejected)
	}
	if err != nil {
		a.log.Warn("space that was lent cannot be used", "peer", id, "err", err)
		return lackUnreachable
	}
	if a.owned() == before {
		return lackSpace // an old answer
	}
	return lackNothing
}

// owned counts this node's atoms.
func (a *Allocator) owned() (n int) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, b := range untwinned(a.blocks[a.self]) {
		from, to, _ := a.cfg.Universe.Range(b)
		n += to - from
	}
	return n
}
