package sleeve

import (
	"math/rand/v2"
	"sync"

	"weft/crypto/noise"
)

// directory finds what a datagram's index stands for: keys, or a handshake that waits for its response. Indexes are
// random so that they tell nothing and a guess meets nothing.
type directory struct {
	mu      sync.RWMutex
	entries map[uint32]entry
}

type entry struct {
	remote *remote
	keys   *keys // nil while the handshake is under way
}

// reserve takes a free index for a peer's handshake.
func (d *directory) reserve(r *remote) uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		i := rand.Uint32N(noise.MaxIndex) + 1
		if _, taken := d.entries[i]; taken {
			continue
		}
		if d.entries == nil {
			d.entries = make(map[uint32]entry)
		}
		d.entries[i] = entry{remote: r}
		return i
	}
}

// bind makes datagrams with the index of k be opened by k.
func (d *directory) bind(k *keys) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.entries[k.local] = entry{remote: k.owner, keys: k}
}

func (d *directory) release(index uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.entries, index)
}

func (d *directory) find(index uint32) (entry, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	e, ok := d.entries[index]
	return e, ok
}
