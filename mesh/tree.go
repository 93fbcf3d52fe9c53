package mesh

import (
	"bytes"
	"crypto/sha256"
	"slices"
)

// hash names content.
type hash [sha256.Size]byte

func (h hash) compare(other hash) int { return bytes.Compare(h[:], other[:]) }

// sum is a shortened hash over many entries.
type sum [16]byte

// tree summarises a set of entries in 256 buckets, so that two nodes that differ in one entry exchange one bucket. The
// bucket of an entry is chosen by its owner; it should spread evenly.
type tree struct {
	entries [256][]hash // sorted: a map for each bucket would take ten times the memory of a few entries
	sums    [256]sum    // of entries; zero when empty
	stale   [256]bool
	root    sum
	fresh   bool // root is of the present entries
}

func (t *tree) add(bucket byte, h hash) {
	i, known := slices.BinarySearchFunc(t.entries[bucket], h, hash.compare)
	if known {
		return
	}
	t.entries[bucket] = slices.Insert(t.entries[bucket], i, h)
	t.stale[bucket], t.fresh = true, false
}

func (t *tree) remove(bucket byte, h hash) {
	i, known := slices.BinarySearchFunc(t.entries[bucket], h, hash.compare)
	if !known {
		return
	}
	t.entries[bucket] = slices.Delete(t.entries[bucket], i, i+1)
	t.stale[bucket], t.fresh = true, false
}

func (t *tree) refresh() {
	for i, stale := range t.stale {
		if !stale {
			continue
		}
		t.stale[i] = false
		t.sums[i] = sum{}
		if len(t.entries[i]) == 0 {
			continue
		}
		d := sha256.New()
		for _, h := range t.entries[i] {
			d.Write(h[:])
		}
		copy(t.sums[i][:], d.Sum(nil))
	}
}

// digest is one sum over all buckets.
func (t *tree) digest() []byte {
	if !t.fresh {
		h := sha256.Sum256(t.summary())
		t.root, t.fresh = sum(h[:len(sum{})]), true
	}
	return bytes.Clone(t.root[:])
}

// summary lists the sums of buckets that are not empty: bucket(1) sum(16), in order.
func (t *tree) summary() []byte {
	t.refresh()
	b := make([]byte, 0, len(t.sums)*(1+len(sum{})))
	for i, s := range t.sums {
		if s != (sum{}) {
			b = append(append(b, byte(i)), s[:]...)
		}
	}
	return b
}

// differing tells which buckets differ from another node's summary. One that cannot be read differs everywhere.
func (t *tree) differing(summary []byte) (differs [256]bool) {
	const size = 1 + len(sum{})
	t.refresh()
	var theirs [256]sum
	for len(summary) >= size {
		copy(theirs[summary[0]][:], summary[1:size])
		summary = summary[size:]
	}
	for i := range t.sums {
		differs[i] = t.sums[i] != theirs[i]
	}
	return differs
}
