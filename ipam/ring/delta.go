package ring

import (
	"bytes"
	"crypto/sha256"
	"slices"
)

// The format of a summary: version(1), then for each bucket of entries, by the first byte of their names, 8 bytes of the
// hash of all names in it, ascending. An empty bucket is zero.
const (
	summaryVersion = 1
	buckets        = 256
	bucketSize     = 8
	summarySize    = 1 + buckets*bucketSize

	// fewEntries is how many entries a state may have that is sent whole: a summary would be as large.
	fewEntries = 16
)

// Summary is what another member needs to find what this state lacks; empty where it is so little that all of it may be
// sent.
func (r *Ring) Summary() []byte {
	if len(r.links)+len(r.views) < fewEntries {
		return nil
	}
	return r.summarize()
}

func (r *Ring) summarize() []byte {
	r.summaryOnce.Do(func() {
		var ids [buckets][]ID
		for id := range r.links {
			ids[id[0]] = append(ids[id[0]], id)
		}
		for _, v := range r.views {
			ids[v.id[0]] = append(ids[v.id[0]], v.id)
		}
		s := append(make([]byte, 0, summarySize), summaryVersion)
		for _, bucket := range ids {
			slices.SortFunc(bucket, ID.compare)
			s = append(s, hashOf(bucket)...)
		}
		r.summary = s
	})
	return r.summary
}

func hashOf(ids []ID) []byte {
	if len(ids) == 0 {
		return make([]byte, bucketSize)
	}
	b := make([]byte, 0, len(ids)*len(ID{}))
	for _, id := range ids {
		b = append(b, id[:]...)
	}
	sum := sha256.Sum256(b)
	return sum[:bucketSize]
}

// Delta is all of the state that the state with that summary may lack, in wire form, with what it rests on: whoever merges
// it has all that r has. It is nil where nothing is lacking, and the whole state where the summary does not say.
func (r *Ring) Delta(summary []byte) []byte {
	if len(summary) != summarySize || summary[0] != summaryVersion {
		return r.Encode()
	}
	own := r.summarize()
	var lacks [buckets]bool
	for b := range buckets {
		at := 1 + b*bucketSize
		lacks[b] = !bytes.Equal(own[at:at+bucketSize], summary[at:at+bucketSize])
	}
	set := make(map[ID]*Grant)
	records := make(map[ID]bool)
	for id, g := range r.links {
		if !lacks[id[0]] {
			continue
		}
		for g != nil && set[g.id] == nil {
			set[g.id] = g
			records[g.record] = true
			g = r.links[g.parent]
		}
	}
	views := slices.DeleteFunc(slices.Clone(r.views), func(v *View) bool { return !lacks[v.id[0]] && !records[v.id] })
	if len(set)+len(views) == 0 {
		return nil
	}
	return encode(set, views)
}
