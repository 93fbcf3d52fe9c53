package mesh

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"

	"weft/crypto/identity"
	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// Records are written to the store soon after they changed: a daemon that is killed and starts again plans with what it
// finds there, and must not find less than it knew. Writing takes at most a small part of the time.
const (
	savedDelay = 20 * time.Millisecond  // changes within it are written together
	savedPause = 250 * time.Millisecond // at least, between two writes
	savedShare = 20                     // and so many times what the last one took,
	savedMost  = time.Second            // at most: a daemon that is killed meanwhile starts without its newest peers' addresses
)

// errUnknownMember says that a record came before its author's certificate: it will be offered again.
var errUnknownMember = errors.New("a record of somebody without certificate")

// stored is a record with the bytes that its author signed.
type stored struct {
	Record
	raw []byte
}

// newer decides between two records of one member. Equal epochs come from a key that runs twice; the bytes decide, so
// that all decide alike.
func newer(a, b *stored) bool {
	if a.Epoch != b.Epoch {
		return a.Epoch > b.Epoch
	}
	return bytes.Compare(a.raw, b.raw) > 0
}

// records holds the newest record of each member.
type records struct {
	self      peer.ID
	publicKey func(peer.ID) (ed25519.PublicKey, bool)
	removed   func(peer.ID) bool
	memo      *Memo

	mu    sync.RWMutex        // guards all below
	byID  map[peer.ID]*stored // what it points to never changes
	tree  tree
	dirty bool // differs from what is in the store

	unwritten chan struct{} // capacity 1: the store lacks something
}

func newRecords(
	self peer.ID, publicKey func(peer.ID) (ed25519.PublicKey, bool), removed func(peer.ID) bool, memo *Memo,
) *records {
	return &records{
		self: self, publicKey: publicKey, removed: removed, memo: memo,
		byID: map[peer.ID]*stored{}, unwritten: make(chan struct{}, 1),
	}
}

func (r *records) get(id peer.ID) (Record, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	s, ok := r.byID[id]
	if !ok {
		return Record{}, false
	}
	return s.Record, true
}

func (r *records) has(id peer.ID) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.byID[id] != nil
}

func (r *records) len() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.byID)
}

// put is called with the lock held.
func (r *records) put(s *stored) {
	if old, ok := r.byID[s.ID]; ok {
		r.tree.remove(s.ID[0], sha256.Sum256(old.raw))
	}
	signal(r.unwritten)
	r.byID[s.ID] = s
	r.tree.add(s.ID[0], sha256.Sum256(s.raw))
	r.dirty = true
}

// setOwn puts this node's record, which only this node makes.
func (r *records) setOwn(s stored) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.put(&s)
}

// merge takes every good record that is newer. A record of this node is not taken: when the cluster holds another than
// the one in use, its epoch is the result, so that the next one can be made newer.
func (r *records) merge(b []byte) (outbid uint64, err error) {
	var errs []error
	forged := 0
	for raw, err := range received("records", b) {
		if err == nil {
			var claimed uint64
			claimed, err = r.take(raw)
			outbid = max(outbid, claimed)
		}
		if err != nil {
			errs = append(errs, err)
		}
		if errors.Is(err, identity.ErrSignature) {
			if forged++; forged == maxForged {
				break
			}
		}
	}
	return outbid, summarize("records", errs)
}

func (r *records) take(raw []byte) (outbid uint64, err error) {
	s, verified := r.memo.record(raw)
	if !verified {
		rec, err := parseRecord(raw)
		if err != nil {
			return 0, err
		}
		s = &stored{rec, raw}
	}
	r.mu.RLock()
	old, known := r.byID[s.ID]
	r.mu.RUnlock()
	if known && (!newer(s, old) && s.ID != r.self || bytes.Equal(raw, old.raw)) {
		return 0, nil
	}
	if r.removed(s.ID) {
		return 0, nil // whoever sent it has not heard of that yet
	}
	pub, ok := r.publicKey(s.ID)
	if !ok {
		return 0, errUnknownMember
	}
	if !verified && !verifyRecord(pub, raw) {
		return 0, fmt.Errorf("record of %s: %w", s.ID.Short(), identity.ErrSignature)
	}
	if s.ID == r.self {
		return s.Epoch, nil
	}
	if !verified {
		s.raw = bytes.Clone(raw)
		r.memo.keep(s)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.publicKey(s.ID); !ok { // removed meanwhile, and forgotten or about to be
		return 0, errUnknownMember
	}
	if old, known := r.byID[s.ID]; !known || newer(s, old) {
		r.put(s)
	}
	return 0, nil
}

// forget drops what a removed member said.
func (r *records) forget(id peer.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, known := r.byID[id]
	if !known || id == r.self {
		return
	}
	r.tree.remove(id[0], sha256.Sum256(old.raw))
	delete(r.byID, id)
	r.dirty = true
	signal(r.unwritten)
}

func (r *records) digest() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tree.digest()
}

func (r *records) summary() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tree.summary()
}

func (r *records) snapshot() []byte {
	r.mu.RLock()
	defer r.mu.RUnlock()
	size := 1
	for _, s := range r.byID {
		size += itemHead + len(s.raw)
	}
	b := append(make([]byte, 0, size), byte(listVersion))
	for _, s := range r.byID {
		b = appendItem(b, s.raw)
	}
	return b
}

func (r *records) delta(summary []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	differs := r.tree.differing(summary)
	b := []byte{byte(listVersion)}
	for id, s := range r.byID {
		if differs[id[0]] && len(b) < maxDelta {
			b = appendItem(b, s.raw)
		}
	}
	return b
}

// unsaved is a snapshot when the store lacks something, else nil.
func (r *records) unsaved() []byte {
	r.mu.Lock()
	dirty := r.dirty
	r.dirty = false
	r.mu.Unlock()
	if !dirty {
		return nil
	}
	return r.snapshot()
}

// ownRaw is our record as it travels.
func (m *Mesh) ownRaw() []byte {
	m.own.mu.Lock()
	defer m.own.mu.Unlock()
	return m.own.now.raw
}

// takeRecord takes the record inside a digest message, if there is one. It is checked like any other: the signature says
// whose it is.
func (m *Mesh) takeRecord(digests []byte) {
	_, fields, err := tlv.ParseVersioned("digests", digests, digestVersion)
	if err != nil {
		return
	}
	raw, ok := fields.Get(digestRecord)
	if !ok {
		return
	}
	before := m.records.digest()
	outbid, err := m.records.take(raw)
	if err = errors.Join(err, m.outbid(outbid)); err != nil {
		m.count.malformed.Add(1)
		return
	}
	if !bytes.Equal(before, m.records.digest()) {
		m.Announce("records", listOf(bytes.Clone(raw)))
	}
}

// recordsReplica is the records as other nodes see them.
type recordsReplica struct{ m *Mesh }

func (r recordsReplica) Digest() []byte   { return r.m.records.digest() }
func (r recordsReplica) Snapshot() []byte { return r.m.records.snapshot() }
func (r recordsReplica) Summary() []byte  { return r.m.records.summary() }

// about is whose record a list of one holds.
func (r recordsReplica) about(list []byte) string {
	for raw, err := range listItems("records", list) {
		if rec, bad := parseRecord(raw); err == nil && bad == nil {
			return string(rec.ID[:])
		}
		break
	}
	return ""
}
func (r recordsReplica) Delta(summary []byte) []byte { return r.m.records.delta(summary) }
func (r recordsReplica) Merge(b []byte) error {
	outbid, err := r.m.records.merge(b)
	return errors.Join(err, r.m.outbid(outbid))
}

// keepRecords writes the records of others to the store when they change.
func (m *Mesh) keepRecords(ctx context.Context) {
	for {
		select {
		case <-m.records.unwritten:
		case <-ctx.Done():
			return
		}
		if !sleep(ctx, savedDelay) {
			return
		}
		began := time.Now()
		m.saveRecords()
		if !sleep(ctx, min(max(savedPause, savedShare*time.Since(began)), savedMost)) {
			return
		}
	}
}

func (m *Mesh) saveRecords() {
	b := m.records.unsaved()
	if b == nil {
		return
	}
	if err := m.store.Save(storeRecords, b); err != nil {
		m.log.Warn("records not saved", "err", err)
	}
}
