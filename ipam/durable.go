package ipam

import (
	"net/netip"
	"time"

	"weft/ipam/ring"
	"weft/ipam/space"
)

// What is in memory is what the store says: a change is committed first, and after an error the store is read again.

// storeRetry is how often a store that could not be written is tried again.
const storeRetry = time.Second

// commit writes one transaction. After an error nothing is certain, so nothing is written until the store was read.
func (a *Allocator) commit(ops ...Op) error {
	if a.storeErr != nil {
		if err := a.reload(); err != nil {
			return err
		}
	}
	for _, addr := range a.woken {
		ops = append([]Op{deleteRest(addr)}, ops...) // first: the address may be released again by ops
	}
	var cooled []ring.ID
	for id := range a.cooling {
		if !a.opens[id].After(a.now()) {
			cooled = append(cooled, id)
			ops = append([]Op{deleteTaken(id)}, ops...)
		}
	}
	if err := a.cfg.Store.Commit(ops); err != nil {
		a.storeErr = err
		a.log.Error("address store not written", "err", err)
		a.setProblem(err.Error())
		return err
	}
	a.woken = nil
	for _, id := range cooled {
		delete(a.cooling, id)
	}
	return nil
}

// reload makes what is stored the state again, after a commit of which nobody knows whether it was one.
func (a *Allocator) reload() error {
	st, err := load(a.cfg.Store, a.cfg.Universe, a.cfg.Linked6)
	if err != nil {
		a.setProblem(err.Error())
		return err
	}
	current := a.start
	a.adopt(st)
	if a.start.incarnation == current.incarnation {
		a.start = current
	}
	a.woken, a.storeErr = nil, nil
	a.setProblem("")
	a.cfg.Network.Changed(nil)
	return nil
}

func (a *Allocator) setProblem(p string) {
	a.mu.Lock()
	a.problem = p
	a.mu.Unlock()
	a.notify()
}

// adopt makes a loaded state the current one.
func (a *Allocator) adopt(st *state) {
	sp := space.New(a.cfg.Universe.Pools(), a.cfg.CoolFor)
	claims := make(map[netip.Addr]claim, len(st.claims))
	byName := make(map[claimName]netip.Addr, len(st.claims))
	var host netip.Addr
	for _, c := range st.claims {
		addr := c.Addr()
		sp.Take(addr)
		claims[addr] = c
		if c.host {
			host = addr
		} else {
			byName[claimName{c.Container, c.IfName}] = addr
		}
	}
	// When they were released is not known, by the clock of this boot: they rest anew.
	now := a.now()
	for _, addr := range st.resting {
		if _, used := claims[addr]; !used {
			sp.Take(addr)
			sp.Release(addr, now)
		}
	}
	a.start.incarnation = st.incarnation
	a.mu.Lock()
	defer a.mu.Unlock()
	a.space, a.claims, a.byName, a.host = sp, claims, byName, host
	a.heard, a.served = st.heard, st.served
	a.promised, a.refused, a.removed = st.promised, st.refused, st.removed
	a.learns = st.novice
	a.refusals++
	// When blocks were taken over is not known, by the clock of this boot: they cool anew.
	clear(a.cooling)
	for _, id := range st.taken {
		a.cooling[id] = true
		if _, known := a.opens[id]; !known {
			a.opens[id] = now.Add(a.cfg.CoolTaken)
		}
	}
	a.setRing(st.ring)
	if st.stopped != "" {
		a.phase, a.stopped = phaseStopped, st.stopped
	}
}
