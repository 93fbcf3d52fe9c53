package ring

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"

	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// The format of a state or of a part of it.
const (
	wireVersion = tlv.Version(0x10)
	tagGrants   = 1
	tagViews    = 2
)

// Limits of a message, checked before anything is allocated for its parts.
const (
	MaxWire   = 896 << 10     // bytes; a message that carries it has room for more
	MaxGrants = MaxWire / 150 // no grant is shorter
	MaxViews  = MaxWire / 150 // no view record is shorter, either
)

func encode(set map[ID]*Grant, views []*View) []byte {
	return encodeInOrder(slices.SortedFunc(maps.Values(set), byPosition), views)
}

// encodeInOrder is encode of grants by position.
func encodeInOrder(grants []*Grant, views []*View) []byte {
	size := 64
	raws := make([][]byte, len(grants))
	for i, g := range grants {
		raws[i] = g.raw
		size += len(g.raw) + 4
	}
	records := make([][]byte, len(views))
	for i, v := range views {
		records[i] = v.raw
		size += len(v.raw) + 4
	}
	b := tlv.AppendVersion(make([]byte, 0, size), wireVersion)
	b = tlv.AppendList(b, tagGrants, raws)
	return tlv.AppendList(b, tagViews, records)
}

// Decode reads what Encode or Proof wrote. It fails only where nothing can be read; entries that cannot are listed in
// the batch's rejections. No part of b is kept.
func Decode(u *Universe, b []byte) (*Batch, error) { return (&Ring{u: u}).Decode(b) }

// Decode reads like the function of that name. Of what r has already, which is nearly all that others send, it only takes
// the hash.
func (r *Ring) Decode(b []byte) (*Batch, error) {
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
		batch.parse(r, raws)
	}
	if list, ok := f.Get(tagViews); ok {
		raws, err := tlv.List(list, MaxViews)
		if err != nil {
			batch.reject(err)
		}
		batch.parseViews(raws)
	}
	return batch, nil
}

// parse takes the good ones of raw grants, known ones as they are.
func (b *Batch) parse(known *Ring, raws [][]byte) {
	b.grants = make([]*Grant, 0, len(raws))
	for _, raw := range raws {
		if g := known.links[idOf(raw)]; g != nil {
			b.grants = append(b.grants, g)
			continue
		}
		g, err := parseGrant(known.u, raw)
		if err != nil {
			b.reject(err)
			continue
		}
		b.grants = append(b.grants, g)
	}
}

// idOf names what is written like this.
func idOf(raw []byte) ID {
	sum := sha256.Sum256(raw)
	return ID(sum[:len(ID{})])
}

// parseViews takes the good ones of raw view records.
func (b *Batch) parseViews(raws [][]byte) {
	for _, raw := range raws {
		v, err := parseView(raw)
		if err != nil {
			b.reject(err)
			continue
		}
		b.views = append(b.views, v)
	}
}

func (b *Batch) reject(err error) { b.rejected = append(b.rejected, Rejection{Err: err}) }

// Restore rebuilds a state from what this node stored: the raw grants and view records of a ring, which were proven
// before they were stored.
func Restore(u *Universe, grants, views [][]byte) (*Ring, []Rejection) {
	batch := &Batch{}
	batch.parse(&Ring{u: u}, grants)
	batch.parseViews(views)
	yes := func(peer.ID) bool { return true }
	believe := func(peer.ID, string, []byte, []byte) error { return nil }
	p := u.Prove(batch, Judge{Verify: believe, Issued: yes, Removed: yes})
	r, _ := New(u).Merge(p)
	return r, p.Rejected()
}
