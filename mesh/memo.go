package mesh

import (
	"crypto/sha256"
	"sync"

	"weft/crypto/identity"
)

// Memo remembers items and records whose signatures were good, for many nodes of one cluster in one process: what one of
// them has verified the others take as it is, parsed. A simulation of a thousand nodes would otherwise spend its time on
// a million certificates. A daemon has none.
type Memo struct {
	mu      sync.RWMutex // guards all below
	items   map[hash]identity.Item
	records map[hash]*stored
}

// NewMemo makes one that remembers nothing. It serves one cluster: what is good under one root is not under another.
func NewMemo() *Memo {
	return &Memo{items: map[hash]identity.Item{}, records: map[hash]*stored{}}
}

// item is check's answer about raw, remembered when it is good. A nil Memo only asks.
func (m *Memo) item(raw []byte, check func([]byte) (identity.Item, error)) (identity.Item, error) {
	if m == nil {
		return check(raw)
	}
	key := hash(sha256.Sum256(raw))
	m.mu.RLock()
	item, ok := m.items[key]
	m.mu.RUnlock()
	if ok {
		return item, nil
	}
	item, err := check(raw)
	if err == nil && item != nil {
		m.mu.Lock()
		m.items[key] = item
		m.mu.Unlock()
	}
	return item, err
}

// record is the same for a record.
func (m *Memo) record(raw []byte) (*stored, bool) {
	if m == nil {
		return nil, false
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	s, ok := m.records[sha256.Sum256(raw)]
	return s, ok
}

func (m *Memo) keep(s *stored) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records[sha256.Sum256(s.raw)] = s
}
