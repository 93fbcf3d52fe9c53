package ipamsim

import (
	"errors"
	"maps"
	"slices"
	"sync"

	"weft/ipam"
)

var (
	errDied = errors.New("the machine has died")
	errFull = errors.New("no space left on device")
)

// disk is an ipam.Store whose machine can die just before or just after a transaction, and which can be full. A
// transaction is durable as a whole or not at all. Values are never changed in place, so copies share them.
type disk struct {
	mu      sync.Mutex
	tables  map[ipam.Table]map[string]string
	commits int
	dieAt   int  // the commit that the machine does not survive, counted from 1; 0 for none
	failAt  int  // the commit that fails
	durable bool // whether that commit is on the disk
	dead    bool
	died    func() // called once, with mu held
}

var _ ipam.Store = (*disk)(nil)

func newDisk() *disk { return &disk{tables: make(map[ipam.Table]map[string]string)} }

// Load yields entries in the order of their keys, as bbolt does.
func (d *disk) Load(yield func(table ipam.Table, key, value []byte) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return errDied
	}
	for _, table := range slices.Sorted(maps.Keys(d.tables)) {
		values := d.tables[table]
		for _, k := range slices.Sorted(maps.Keys(values)) {
			if err := yield(table, []byte(k), []byte(values[k])); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *disk) Commit(ops []ipam.Op) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return errDied
	}
	d.commits++
	dies, fails := d.commits == d.dieAt, d.commits == d.failAt
	if !dies && !fails || d.durable {
		d.apply(ops)
	}
	switch {
	case dies:
		d.dead = true
		if d.died != nil {
			d.died()
		}
		return errDied
	case fails:
		return errFull
	}
	return nil
}

func (d *disk) apply(ops []ipam.Op) {
	for _, op := range ops {
		if op.Value == nil {
			delete(d.tables[op.Table], string(op.Key))
			continue
		}
		if d.tables[op.Table] == nil {
			d.tables[op.Table] = make(map[string]string)
		}
		d.tables[op.Table][string(op.Key)] = string(op.Value)
	}
}

// Close does nothing: the disk stays.
func (d *disk) Close() error { return nil }

// unplug ends the writing of a machine that is killed.
func (d *disk) unplug() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
}

// plug lets the next life of the machine use the disk.
func (d *disk) plug(died func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead, d.dieAt, d.failAt, d.died = false, 0, 0, died
}

// trap makes one of the next commits fatal, or only fail.
func (d *disk) trap(in int, durable, fatal bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.durable = durable
	if fatal {
		d.dieAt = d.commits + in
	} else {
		d.failAt = d.commits + in
	}
}

func (d *disk) untrap() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dieAt, d.failAt = 0, 0
}

// copy is what is durable now.
func (d *disk) copy() *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := newDisk()
	for table, values := range d.tables {
		c.tables[table] = maps.Clone(values)
	}
	return c
}
