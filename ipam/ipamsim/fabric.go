package ipamsim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"weft/mesh/peer"
)

// Fate is what happens to one message beside the weather.
type Fate struct {
	Lost  bool
	Twice bool
	Late  time.Duration
}

// carry takes one message over the fabric: arrive is called once, twice or never.
func (w *World) carry(from, to *Machine, kind string, size int, arrive func()) {
	w.counts.Messages++
	w.counts.Bytes += size
	link := [2]int{from.index, to.index}
	var fate Fate
	if w.Fate != nil {
		fate = w.Fate(from, to, kind)
	}
	if w.cuts[link] || fate.Lost {
		w.counts.Lost++
		return
	}
	w.links[link]++
	d := mix(w.setup.Seed, uint64(from.index)<<32|uint64(to.index), w.links[link])
	weather := w.setup.Weather
	if d.chance(weather.Loss) {
		w.counts.Lost++
		return
	}
	times := 1
	if d.chance(weather.Twice) || fate.Twice {
		times = 2
	}
	for range times {
		delay := leastDelay + d.span(max(weather.Delay, time.Millisecond))
		delay += fate.Late
		if d.chance(weather.Late) {
			delay += d.span(lateBy)
		}
		w.after(delay, func() {
			w.note(from.index, to.index, kind)
			arrive()
		})
	}
}

// Cut ends the way from one machine to another, in that direction.
func (w *World) Cut(from, to *Machine) {
	w.change(func() { w.cuts[[2]int{from.index, to.index}] = true })
}

// Part cuts the machines of each group off from all others. Machines in no group form one more.
func (w *World) Part(groups ...[]*Machine) {
	side := make([]int, len(w.machines))
	for i, g := range groups {
		for _, m := range g {
			side[m.index] = i + 1
		}
	}
	w.change(func() {
		clear(w.cuts)
		for i := range w.machines {
			for j := range w.machines {
				if side[i] != side[j] {
					w.cuts[[2]int{i, j}] = true
				}
			}
		}
	})
}

// Heal makes all ways whole.
func (w *World) Heal() { w.change(func() { clear(w.cuts) }) }

// SetWeather changes what happens to messages from now on.
func (w *World) SetWeather(weather Weather) { w.setup.Weather = weather }

func (w *World) reaches(a, b *Machine) bool {
	return !w.cuts[[2]int{a.index, b.index}] && !w.cuts[[2]int{b.index, a.index}]
}

// change alters who can reach whom, or who is up.
func (w *World) change(f func()) {
	w.locked(func() {
		f()
		w.version++
	})
}

// locked alters what a machine shares with its allocator.
func (w *World) locked(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// result is the answer to a call.
type result struct {
	answer []byte
	err    error
}

var errRefused = errors.New("connection refused")

// Call carries a call to another machine's allocator and waits for the answer.
func (l *life) Call(ctx context.Context, to peer.ID, method string, req []byte) ([]byte, error) {
	w, reply := l.m.w, make(chan result, 2)
	body := bytes.Clone(req)
	index := -1
	w.locked(func() {
		if all := w.byID[to]; len(all) > 0 {
			index = all[0].index
		}
	})
	l.post(method, index, uint64(len(body)), func() { w.call(l, to, method, body, reply) })
	select {
	case r := <-reply:
		return r.answer, r.err
	case <-ctx.Done():
		return nil, ended(ctx)
	}
}

// call is the World's side of Call.
func (w *World) call(l *life, to peer.ID, method string, body []byte, reply chan result) {
	callee := w.oneOf(to)
	if callee == nil {
		reply <- result{err: fmt.Errorf("%s: unknown", to.Short())}
		return
	}
	answer := func(r result) {
		w.carry(callee, l.m, "answer "+method, len(r.answer), func() {
			select {
			case reply <- r:
			default: // nobody waits for the second one
			}
		})
	}
	w.carry(l.m, callee, method, len(body), func() {
		c := callee.now
		if c == nil {
			answer(result{err: errRefused})
			return
		}
		c.wg.Go(func() {
			b, err := c.alloc.HandleCall(c.ctx, l.m.key.id, method, bytes.Clone(body))
			b = bytes.Clone(b)
			c.post("answer "+method, l.m.index, uint64(len(b)), func() { answer(result{b, err}) })
		})
	})
}

// oneOf is the machine that is reached under an identity: the one that is up, by chance one of two copies.
func (w *World) oneOf(id peer.ID) *Machine {
	all := w.byID[id]
	var up []*Machine
	for _, m := range all {
		if m.now != nil {
			up = append(up, m)
		}
	}
	switch {
	case len(up) > 1:
		d := mix(w.setup.Seed, uint64Of(id), w.made)
		return pick(&d, up...)
	case len(up) == 1:
		return up[0]
	case len(all) > 0:
		return all[len(all)-1]
	}
	return nil
}

// gossip compares one machine's state with that of others: the roster travels whole, the ring as a digest first, then as what
// the other one lacks.
func (w *World) gossip(m *Machine, others int) {
	if m.now == nil || !m.member {
		return
	}
	ids := m.roster.others(m.key.id)
	d := mix(w.setup.Seed, uint64(m.index), w.made, 'g')
	for range min(others, len(ids)) {
		i := d.n(len(ids))
		if to := w.oneOf(ids[i]); to != nil {
			w.compare(m, to)
		}
		ids = slices.Delete(ids, i, i+1)
	}
}

// Meet lets two machines compare what they have, even where they would not talk to each other by themselves.
func (w *World) Meet(a, b *Machine) {
	if a.now != nil && b.now != nil {
		w.compare(a, b)
		w.compare(b, a)
	}
}

// compare sends what m has to one machine, as little of it as will do.
func (w *World) compare(m, to *Machine) {
	r, digest, summary := m.roster, m.now.alloc.Digest(), m.now.alloc.Summary()
	w.carry(m, to, "digest", r.size()+len(digest), func() {
		if to.now == nil || !to.member {
			return
		}
		if to.roster.removed(m.key.id) {
			// The mesh cuts a removed member off, but what it wrote may come by others, who have not heard yet.
			w.tell(to, m)
			if m.index%2 == 0 || m.now == nil {
				return
			}
			w.hand(m, to, nil, false)
			return
		}
		w.learn(to, r)
		if !bytes.Equal(to.now.alloc.Digest(), digest) {
			w.hand(to, m, summary, true)
		} else if to.roster != r {
			w.tell(to, m)
		}
	})
}

// tell sends the roster alone.
func (w *World) tell(from, to *Machine) {
	r := from.roster
	w.carry(from, to, "roster", r.size(), func() {
		if to.now != nil && to.member {
			w.learn(to, r)
		}
	})
}

// hand sends what the other's state lacks, going by the summary that came from it; back asks for the same in return.
func (w *World) hand(from, to *Machine, summary []byte, back bool) {
	r, digest, own := from.roster, from.now.alloc.Digest(), from.now.alloc.Summary()
	delta := bytes.Clone(from.now.alloc.Delta(summary))
	w.carry(from, to, "state", r.size()+len(delta)+len(own), func() {
		l := to.now
		if l == nil || !to.member {
			return
		}
		if !to.roster.removed(from.key.id) {
			w.learn(to, r)
		}
		if bytes.Equal(l.alloc.Digest(), digest) {
			return
		}
		l.wg.Go(func() {
			if err := l.alloc.Merge(delta); err != nil { // what is left out comes again: the digests still differ
				w.logf("%s leaves out a part of the state of %s: %v", to, from, err)
			}
			l.post("merged", from.index, 0, func() {
				if back && from.now != nil {
					w.hand(to, from, own, false)
				}
			})
		})
	})
}
