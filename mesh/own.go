package mesh

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"sync"
	"time"
)

// ownRecord is what this node says about itself.
type ownRecord struct {
	mu     sync.Mutex // held while a new one is made, saved and put
	now    stored
	outbid time.Time // when it was last made newer than one of ours that came from others
}

// outbidEvery keeps two machines with one key from outbidding each other as fast as messages travel.
const outbidEvery = 5 * time.Second

// SavedRecord is what this node said about itself last, by what the store holds; the zero Record when there is none, or
// none that can be read.
func SavedRecord(s Store) (Record, error) {
	saved, err := s.Load(storeSelf)
	if err != nil {
		return Record{}, fmt.Errorf("load own record: %w", err)
	}
	rec, err := parseRecord(saved)
	if err != nil {
		return Record{}, nil //nolint:nilerr // New says so
	}
	return rec, nil
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
	grown, raw := m.own.now.Epoch != before, m.own.now.raw
	m.own.mu.Unlock()
	if grown {
		m.Announce("records", listOf(raw))
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
	if epoch < m.own.now.Epoch || !m.own.outbid.IsZero() && time.Since(m.own.outbid) < outbidEvery {
		return nil
	}
	m.own.outbid = time.Now()
	m.log.Warn("others hold a newer record of this node: is it restored from a backup, or does its key run twice?",
		"epoch", epoch, "own", m.own.now.Epoch)
	return m.speak(m.own.now.Record, epoch+1)
}

// say makes rec our record, unless it is already. It is called with the lock held.
func (m *Mesh) say(rec Record, epoch uint64) error {
	rec = rec.normal()
	rec.ID, rec.Epoch = m.self, epoch
	// The bytes are compared, not what is read of them: after a downgrade the saved record says more than this build means.
	if epoch > 0 && bytes.Equal(rec.body(), m.own.now.raw[:len(m.own.now.raw)-ed25519.SignatureSize]) {
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
