package ipam

import (
	"errors"
	"maps"
	"sync"
)

var (
	errCrashed = errors.New("the process has died")
	errFull    = errors.New("no space left on device")
)

// memory is a store in memory that can fail: by the death of the process just before or just after a commit is durable,
// or by an error.
type memory struct {
	mu      sync.Mutex
	disk    map[Table]map[string]string
	commits int
	crashAt int  // the commit that the process does not survive, counted from 1; 0 for none
	after   bool // whether that commit is durable
	failAt  int  // the commit that fails
	dead    bool
	onCrash func()
}

func newMemory() *memory { return &memory{disk: make(map[Table]map[string]string)} }

func (m *memory) Load(yield func(table Table, key, value []byte) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return errCrashed
	}
	for table, values := range m.disk {
		for k, v := range values {
			if err := yield(table, []byte(k), []byte(v)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *memory) Commit(ops []Op) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return errCrashed
	}
	m.commits++
	crash, fail := m.commits == m.crashAt, m.commits == m.failAt
	if !crash && !fail || m.after {
		for _, op := range ops {
			if op.Value == nil {
				delete(m.disk[op.Table], string(op.Key))
				continue
			}
			if m.disk[op.Table] == nil {
				m.disk[op.Table] = make(map[string]string)
			}
			m.disk[op.Table][string(op.Key)] = string(op.Value)
		}
	}
	switch {
	case crash:
		m.dead = true
		if m.onCrash != nil {
			m.onCrash()
		}
		return errCrashed
	case fail:
		return errFull
	}
	return nil
}

func (m *memory) Close() error { return nil }

// reboot lets a process start with what was durable.
func (m *memory) reboot() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead, m.crashAt = false, 0
}

// copy is the disk at this moment.
func (m *memory) copy() *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := newMemory()
	for table, values := range m.disk {
		c.disk[table] = maps.Clone(values)
	}
	return c
}
