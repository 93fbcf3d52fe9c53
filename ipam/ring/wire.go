package ring

import (
	"fmt"
	"slices"

	"weft/crypto/tlv"
)

// The format of a state or of a part of it.
const (
	wireVersion = tlv.Version(0x10)
	tagGrants   = 1
	tagViews    = 2
)

// Limits of a message, checked before anything is allocated for its parts.
const (
	MaxWire   = 1 << 20       // bytes
	MaxGrants = MaxWire / 150 // no grant is shorter
	MaxViews  = 64            // view records in a state
	MaxView   = 8 << 10       // bytes of one
)

func encode(links map[ID]*Grant, views [][]byte) []byte {
	grants := make([]*Grant, 0, len(links))
	size := 64
	for _, g := range links {
		grants = append(grants, g)
		size += len(g.raw) + 4
	}
	slices.SortFunc(grants, byPosition)
	raws := make([][]byte, len(grants))
	for i, g := range grants {
		raws[i] = g.raw
	}
	b := tlv.AppendVersion(make([]byte, 0, size), wireVersion)
	b = tlv.AppendList(b, tagGrants, raws)
	return tlv.AppendList(b, tagViews, views)
}

// Decode reads what Encode or Proof wrote. It fails only where nothing can be read; entries that cannot are listed in
// the batch's rejections. No part of b is kept.
func Decode(u *Universe, b []byte) (*Batch, error) {
	if len(b) > MaxWire {
		return nil, fmt.Errorf("parse ring: %d bytes, at most %d", len(b), MaxWire)
	}
	_, f, err := tlv.ParseVersioned("ring", b, wireVersion)
	if err != nil {
		return nil, err
	}
	batch := &Batch{}
	if list, ok := f.Get(tagGrants); ok {
		raws, err := tlv.List(list, MaxGrants)
		if err != nil {
			batch.reject(err)
		}
		batch.parse(u, raws)
	}
	if list, ok := f.Get(tagViews); ok {
		views, err := tlv.List(list, MaxViews)
		if err != nil {
			batch.reject(err)
		}
		for _, v := range views {
			if len(v) == 0 || len(v) > MaxView {
				batch.reject(fmt.Errorf("view record of %d bytes, want 1 to %d", len(v), MaxView))
				continue
			}
			batch.views = append(batch.views, slices.Clone(v))
		}
	}
	return batch, nil
}

// parse takes the good ones of raw grants.
func (b *Batch) parse(u *Universe, raws [][]byte) {
	for _, raw := range raws {
		g, err := parseGrant(u, raw)
		if err != nil {
			b.reject(err)
			continue
		}
		b.grants = append(b.grants, g)
	}
}

func (b *Batch) reject(err error) { b.rejected = append(b.rejected, Rejection{Err: err}) }

// Restore rebuilds a state from what this node stored: the raw grants of a ring, which were proven before they were
// stored, and its view records.
func Restore(u *Universe, raws, views [][]byte) (*Ring, []Rejection) {
	batch := &Batch{views: views}
	batch.parse(u, raws)
	p := u.Prove(batch, func(ID) bool { return true }, nil)
	r, _ := New(u).Merge(p)
	return r, p.Rejected()
}
