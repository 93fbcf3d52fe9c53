package join

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"weft/crypto/identity"
	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// PromiseLife is how long a promise counts without a certificate: longer than an issuer works on one application by any
// clock that runs about right, short enough that a use lost in a crash is soon free again.
const PromiseLife = 2 * time.Minute

// maxPromises at once; a voter with as many refuses more.
const maxPromises = 1024

// Store keeps a few named values over a restart.
type Store interface {
	// Load answers nil when nothing was saved under the name.
	Load(name string) ([]byte, error)
	// Save replaces the value. When it returns, the value survives a crash.
	Save(name string, b []byte) error
}

const storeName = "join-promises"

// promise says that a node may use an invitation.
type promise struct {
	invitation identity.ItemID
	issuer     peer.ID
	attempt    attempt
	joinSeq    uint64
	ephemeral  bool
	made       time.Time
}

const (
	promiseSize = 16 + peer.IDSize + 16 + 8 + 8 + 1 + 8
	flagSilent  = 1 // the node will not vote
)

// ledger is a voter's promises, on disk before they are given. One promise per node.
type ledger struct {
	store Store

	mu       sync.Mutex // held while saving: a promise must not be seen before it is safe
	promises map[peer.ID]promise
}

// openLedger takes over what was promised before a restart. What was promised later than now was so by a clock that has been
// set right since: it would not expire for as long as that was ahead.
func openLedger(store Store, now time.Time) (*ledger, error) {
	b, err := store.Load(storeName)
	if err != nil {
		return nil, fmt.Errorf("load join promises: %w", err)
	}
	promises, err := parsePromises(b)
	if err != nil {
		return nil, err
	}
	for id, p := range promises {
		if p.made.After(now) {
			p.made = now
			promises[id] = p
		}
	}
	return &ledger{store: store, promises: promises}, nil
}

// expire forgets promises that nobody kept. A clock that was set back keeps them longer, never shorter.
func (l *ledger) expire(now time.Time) {
	for id, p := range l.promises {
		if now.Sub(p.made) > PromiseLife {
			delete(l.promises, id)
		}
	}
}

// set saves a promise for a node, in place of the one before. It is called with the lock held.
func (l *ledger) set(node peer.ID, p promise) error {
	old, had := l.promises[node]
	if !had && len(l.promises) >= maxPromises {
		return errBusy(fmt.Sprintf("%d nodes are joining", len(l.promises)))
	}
	l.promises[node] = p
	if err := l.save(); err != nil {
		if delete(l.promises, node); had {
			l.promises[node] = old
		}
		return err
	}
	return nil
}

// drop forgets the promise for a node. It is called with the lock held. A failure to save leaves a promise too many on
// disk, which expires by itself.
func (l *ledger) drop(node peer.ID) error {
	if _, ok := l.promises[node]; !ok {
		return nil
	}
	delete(l.promises, node)
	return l.save()
}

// Joining lists the nodes that this member has promised to admit and whose certificates it has not seen: they may be members
// already. Of each it tells ID, JoinSeq and Ephemeral.
func (s *Sponsor) Joining() []peer.Info {
	l := s.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	var joining []peer.Info
	for id, p := range l.promises {
		if s.cfg.Now().Sub(p.made) <= PromiseLife {
			joining = append(joining, peer.Info{ID: id, JoinSeq: p.joinSeq, Ephemeral: p.ephemeral})
		}
	}
	slices.SortFunc(joining, func(a, b peer.Info) int { return a.ID.Compare(b.ID) })
	return joining
}

func (l *ledger) save() error {
	if err := l.store.Save(storeName, appendPromises(nil, l.promises)); err != nil {
		return fmt.Errorf("save join promises: %w", err)
	}
	return nil
}

func appendPromises(b []byte, promises map[peer.ID]promise) []byte {
	nodes := peer.Set{}
	for id := range promises {
		nodes.Add(id)
	}
	var list [][]byte
	for _, id := range nodes.Sorted() {
		p := promises[id]
		e := make([]byte, 0, promiseSize)
		e = append(e, id[:]...)
		e = append(e, p.invitation[:]...)
		e = append(e, p.issuer[:]...)
		e = append(e, p.attempt[:]...)
		e = binary.BigEndian.AppendUint64(e, p.joinSeq)
		flags := byte(0)
		if p.ephemeral {
			flags = flagSilent
		}
		e = append(e, flags)
		list = append(list, binary.BigEndian.AppendUint64(e, uint64(p.made.UnixNano())))
	}
	return tlv.AppendList(tlv.AppendVersion(b, version), 1, list)
}

func parsePromises(b []byte) (map[peer.ID]promise, error) {
	promises := map[peer.ID]promise{}
	if len(b) == 0 {
		return promises, nil
	}
	r, err := open("join promises", b)
	if err != nil {
		return nil, err
	}
	for _, e := range r.List(1, maxPromises) {
		if len(e) < promiseSize { // longer ones are of a newer weft
			r.Fail(errors.New("a promise that is cut off"))
			break
		}
		node := peer.ID(e[:16])
		if _, twice := promises[node]; twice {
			r.Fail(errors.New("two promises for one node"))
		}
		promises[node] = promise{
			invitation: identity.ItemID(e[16:]),
			issuer:     peer.ID(e[32:]),
			attempt:    attempt(e[48:]),
			joinSeq:    binary.BigEndian.Uint64(e[56:]),
			ephemeral:  e[64]&flagSilent != 0,
			made:       time.Unix(0, int64(binary.BigEndian.Uint64(e[65:]))),
		}
	}
	return promises, shut("join promises", r)
}
