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

// recordsSaved is how often records are written to the store. Losing the last ones costs one pull.
const recordsSaved = 30 * time.Second

// errUnknownMember says that a record came before its author's certificate: it will be offered again.
var errUnknownMember = errors.New("a record of somebody without certificate")

// stored is a record with the bytes that its author signed.
type stored struct {
	Record
	raw []byte
}

// newer decides between two records of one member. Equal epochs come from a key that runs twice; the bytes decide, so
// that all decide alike.
func newer(a, b stored) bool {
	if a.Epoch != b.Epoch {
		return a.Epoch > b.Epoch
	}
	return bytes.Compare(a.raw, b.raw) > 0
}

// records holds the newest record of each member.
type records struct {
	self      peer.ID
	publicKey func(peer.ID) (ed25519.PublicKey, bool)

	mu    sync.RWMutex // guards all below
	byID  map[peer.ID]stored
	tree  tree
	dirty bool // differs from what is in the store
}

func newRecords(self peer.ID, publicKey func(peer.ID) (ed25519.PublicKey, bool)) *records {
	return &records{self: self, publicKey: publicKey, byID: map[peer.ID]stored{}}
}

func (r *records) get(id peer.ID) (Record, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	s, ok := r.byID[id]
	return s.Record, ok
}

func (r *records) len() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.byID)
}

// put is called with the lock held.
func (r *records) put(s stored) {
	if old, ok := r.byID[s.ID]; ok {
		r.tree.remove(s.ID[0], sha256.Sum256(old.raw))
	}
	r.byID[s.ID] = s
	r.tree.add(s.ID[0], sha256.Sum256(s.raw))
	r.dirty = true
}

// setOwn puts this node's record, which only this node makes.
func (r *records) setOwn(s stored) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.put(s)
}

// merge takes every good record that is newer. A record of this node is not taken: when the cluster holds another than
// the one in use, its epoch is the result, so that the next one can be made newer.
func (r *records) merge(b []byte) (outbid uint64, err error) {
	var errs []error
	forged := 0
	for raw, err := range listItems("records", b) {
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
	if len(errs) > 0 {
		return outbid, fmt.Errorf("%d bad records, the first: %w", len(errs), errs[0])
	}
	return outbid, nil
}

func (r *records) take(raw []byte) (outbid uint64, err error) {
	rec, err := parseRecord(raw)
	if err != nil {
		return 0, err
	}
	s := stored{rec, raw}
	r.mu.RLock()
	old, known := r.byID[s.ID]
	r.mu.RUnlock()
	if known && !newer(s, old) && s.ID != r.self || bytes.Equal(raw, old.raw) {
		return 0, nil
	}
	pub, ok := r.publicKey(s.ID)
	if !ok {
		return 0, errUnknownMember
	}
	if !verifyRecord(pub, raw) {
		return 0, fmt.Errorf("record of %s: %w", s.ID.Short(), identity.ErrSignature)
	}
	if s.ID == r.self {
		return s.Epoch, nil
	}
	s.raw = bytes.Clone(raw)
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, known := r.byID[s.ID]; !known || newer(s, old) {
		r.put(s)
	}
	return 0, nil
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
	b := []byte{byte(listVersion)}
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
		m.Changed("records")
	}
}

// recordsReplica is the records as other nodes see them.
type recordsReplica struct{ m *Mesh }

func (r recordsReplica) Digest() []byte              { return r.m.records.digest() }
func (r recordsReplica) Snapshot() []byte            { return r.m.records.snapshot() }
func (r recordsReplica) Summary() []byte             { return r.m.records.summary() }
func (r recordsReplica) Delta(summary []byte) []byte { return r.m.records.delta(summary) }
func (r recordsReplica) Merge(b []byte) error {
	outbid, err := r.m.records.merge(b)
	return errors.Join(err, r.m.outbid(outbid))
}

// ownRecord is what this node says about itself.
type ownRecord struct {
	mu  sync.Mutex // held while a new one is made, saved and put
	now stored
}

// startRecord goes on from the saved record. Its epoch is used again only when nothing is said anew.
func (m *Mesh) startRecord(saved []byte, want Record) error {
	m.own.mu.Lock()
	defer m.own.mu.Unlock()
	if len(saved) > 0 {
		rec, err := parseRecord(saved)
		switch {
		case err != nil:
			m.log.Warn("own record in the store cannot be read; its epoch is asked from the others", "err", err)
		case rec.ID != m.self || !verifyRecord(m.key.Public(), saved):
			return fmt.Errorf("load own record: it belongs to %s, this node is %s", rec.ID, m.self)
		default:
			m.own.now = stored{rec, bytes.Clone(saved)}
			m.records.setOwn(m.own.now)
		}
	}
	return m.say(want, m.own.now.Epoch)
}

// Publish changes what this node says about itself. The new record is saved before others can see it. A change that
// changes nothing costs nothing.
func (m *Mesh) Publish(change func(*Record)) error {
	m.own.mu.Lock()
	rec := m.own.now.clone()
	change(&rec)
	before := m.own.now.Epoch
	err := m.say(rec, before)
	grown := m.own.now.Epoch != before
	m.own.mu.Unlock()
	if grown {
		m.Changed("records")
	}
	return err
}

// outbid makes our record newer than one of ours that the cluster holds: this node was restored from a copy of its disk,
// or its key runs twice.
func (m *Mesh) outbid(epoch uint64) error {
	if epoch == 0 {
		return nil
	}
	m.own.mu.Lock()
	defer m.own.mu.Unlock()
	if epoch < m.own.now.Epoch {
		return nil
	}
	m.log.Warn("others hold a newer record of this node: is it restored from a backup, or does its key run twice?",
		"epoch", epoch, "own", m.own.now.Epoch)
	return m.speak(m.own.now.Record, epoch+1)
}

// say makes rec our record, unless it is already. It is called with the lock held.
func (m *Mesh) say(rec Record, epoch uint64) error {
	rec = rec.normal()
	rec.ID, rec.Epoch = m.self, epoch
	if epoch > 0 && bytes.Equal(rec.append(nil), m.own.now.append(nil)) {
		return nil
	}
	return m.speak(rec, epoch+1)
}

// speak signs, saves and puts our record. It is called with the lock held.
func (m *Mesh) speak(rec Record, epoch uint64) error {
	rec.ID, rec.Epoch = m.self, epoch
	raw, err := rec.normal().sign(m.key)
	if err != nil {
		return err
	}
	if err := m.store.Save(storeSelf, raw); err != nil {
		return fmt.Errorf("save own record: %w", err)
	}
	if rec, err = parseRecord(raw); err != nil {
		return err
	}
	m.own.now = stored{rec, raw}
	m.records.setOwn(m.own.now)
	return nil
}

// keepRecords writes the records of others to the store now and then.
func (m *Mesh) keepRecords(ctx context.Context) {
	tick := time.NewTicker(recordsSaved)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			m.saveRecords()
		case <-ctx.Done():
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
