package mesh

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/peer"
)

// Timing of healing.
const (
	healEvery   = 5 * time.Second // a random missing member is tried, with jitter
	healPerPeer = time.Second     // and cluster-wide about one try of one member in this time
	aloneEvery  = time.Second     // while nobody is alive, several are tried more often
	aloneTries  = 3
	triesAtOnce = 8
	hintQueue   = 64
	hintAgain   = time.Second // hints about one member within it are one
)

// healer tries members that are not alive, for ever: memberlist itself never looks for those that it gave up, so two
// halves would never meet again. A try is memberlist's join, a full exchange of states.
type healer struct {
	mesh  *Mesh
	hints chan peer.ID
	back  chan struct{} // capacity 1: somebody was heard whom rumour calls dead

	mu     sync.Mutex // guards all below
	trying peer.Set
	last   map[peer.ID]time.Time // of hints followed
}

func newHealer(m *Mesh) *healer {
	return &healer{
		mesh: m, hints: make(chan peer.ID, hintQueue), back: make(chan struct{}, 1),
		trying: peer.Set{}, last: map[peer.ID]time.Time{},
	}
}

// Hint says that a path to a member has come up: a good moment to try it, or to tell it what datagrams that were lost
// before have told others.
func (m *Mesh) Hint(id peer.ID) {
	select {
	case m.heal.hints <- id:
	default: // many paths came up at once; the regular tries will do
	}
}

func (h *healer) run(ctx context.Context, members *memberlist.Memberlist) {
	var tries sync.WaitGroup
	defer tries.Wait()
	try := func(ids ...peer.ID) {
		for _, id := range ids {
			if h.begin(id) {
				tries.Go(func() { h.try(members, id) })
			}
		}
	}
	try(h.mesh.seeds[:min(len(h.mesh.seeds), aloneTries)]...)
	timer := time.NewTimer(rand.N(aloneEvery))
	defer timer.Stop()
	together := newReunion()
	defer together.timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-h.hints:
			switch {
			case !h.fresh(id):
			case slices.Contains(h.mesh.missing(), id):
				try(id)
			default:
				h.mesh.sync.tellTo(id)
			}
		case <-timer.C:
			ids, again := h.turn()
			try(ids...)
			timer.Reset(again)
		case <-h.back:
			together.wake()
		case <-together.timer.C:
			back, waiting := h.mesh.back()
			missing := h.mesh.missing()
			if together.turn(1+len(h.mesh.alive()), len(missing), len(back), waiting) {
				try(h.whomToAsk(back, missing))
			}
		}
	}
}

// turn picks whom to try now, and when to pick again.
func (h *healer) turn() ([]peer.ID, time.Duration) {
	missing, alive := h.mesh.missing(), 1+len(h.mesh.alive())
	if len(missing) == 0 {
		return nil, jitter(healEvery)
	}
	rand.Shuffle(len(missing), func(i, j int) { missing[i], missing[j] = missing[j], missing[i] })
	if alive == 1 {
		seeds := slices.DeleteFunc(slices.Clone(h.mesh.seeds), func(id peer.ID) bool { return !slices.Contains(missing, id) })
		if len(seeds) > 0 { // one of those that we were told of, and others: the seeds may be gone for ever
			missing = append([]peer.ID{seeds[rand.IntN(len(seeds))]}, missing...)
		}
		return missing[:min(aloneTries, len(missing))], jitter(aloneEvery)
	}
	// All who are alive try alike, so each tries with a chance that makes the sum right.
	chance := float64(len(missing)) * float64(healEvery) / (float64(alive) * float64(healPerPeer))
	if rand.Float64() >= chance {
		return nil, jitter(healEvery)
	}
	return missing[:1], jitter(healEvery)
}

// whomToAsk picks one of the living, most of whom know more of the others, or one of those who are missing, who may not
// know what is said of them: one who is back, if any is.
func (h *healer) whomToAsk(back, missing []peer.ID) peer.ID {
	living := h.mesh.alive()
	if len(back) > 0 {
		missing = back
	}
	if len(missing) == 0 || len(living) > 0 && rand.IntN(2) == 0 {
		missing = living
	}
	if len(missing) == 0 {
		return h.mesh.self // nobody
	}
	return missing[rand.IntN(len(missing))]
}

// fresh reports whether this is the first hint about a member for a while.
func (h *healer) fresh(id peer.ID) bool {
	if id == h.mesh.self || !h.mesh.roster.Member(id) {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if now.Sub(h.last[id]) < hintAgain {
		return false
	}
	h.last[id] = now
	return true
}

func (h *healer) begin(id peer.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.trying.Has(id) || len(h.trying) >= triesAtOnce || id == h.mesh.self {
		return false
	}
	h.trying.Add(id)
	return true
}

func (h *healer) try(members *memberlist.Memberlist, id peer.ID) {
	missing := slices.Contains(h.mesh.missing(), id)
	_, err := members.Join([]string{gossipName(id)})
	switch {
	case err != nil:
		h.mesh.log.Debug("member not reached", "peer", id, "err", err)
	case missing:
		h.mesh.log.Info("member reached", "peer", id)
		h.mesh.heard(id)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.trying, id)
}
