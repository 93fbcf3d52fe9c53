package ring

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// The format of a view record.
const (
	viewVersion   = tlv.Version(0x10)
	viewDomain    = "weft view"
	tagNumber     = 1 // of the payload
	tagWriter     = 2
	tagRemoved    = 3 // list of node(16) incarnation(8), ascending
	tagConfirmed  = 4 // IDs, ascending, one after the other; absent when empty
	tagForced     = 5 // absent: false
	tagBefore     = 6 // IDs of nodes, ascending, one after the other; absent when empty
	namedSize     = peer.IDSize + 8
	maxViewRecord = 160 << 10 // bytes: MaxNamed and MaxGrants fit
)

// Limits of view records.
const (
	MaxNamed = 1024     // removed members of one record
	maxOld   = 2048     // members removed earlier that it remembers
	MaxView  = 1 << 62  // of a number, so that it can always be followed by a higher one
	window   = 64 << 10 // bytes of the newest records, which are kept whether a takeover rests on them or not
)

// Named is a removed member and the newest of its starts that was known when it was removed.
type Named struct {
	Node        peer.ID
	Incarnation uint64
}

// View is the signed record of a completed view: who wrote it has the promise of all survivors that they refuse what the
// removed members write, and takes their blocks over by grants that rest on the record. It is immutable.
type View struct {
	number    uint64
	writer    peer.ID
	removed   []Named   // ascending
	confirmed []ID      // ascending
	before    []peer.ID // removed by earlier views, ascending
	forced    bool
	sig       []byte

	payload []byte
	raw     []byte
	id      ID
}

// ID names the record.
func (v *View) ID() ID { return v.id }

// Number orders views.
func (v *View) Number() uint64 { return v.number }

// Writer is the coordinator of the view, an issuer.
func (v *View) Writer() peer.ID { return v.writer }

// Removed lists who was removed. The caller does not change it.
func (v *View) Removed() []Named { return v.removed }

// Forced reports whether survivors or their quorum were missing.
func (v *View) Forced() bool { return v.forced }

// Raw is the record as it travels and is stored. The caller does not change it.
func (v *View) Raw() []byte { return v.raw }

// Names reports whether id was removed by this view.
func (v *View) Names(id peer.ID) bool {
	_, ok := slices.BinarySearchFunc(v.removed, id, func(n Named, id peer.ID) int { return n.Node.Compare(id) })
	return ok
}

// confirms reports whether something that a removed member wrote stays written.
func (v *View) confirms(id ID) bool {
	_, ok := slices.BinarySearchFunc(v.confirmed, id, ID.compare)
	return ok
}

func (id ID) compare(other ID) int { return bytes.Compare(id[:], other[:]) }

// compareViews is the order of records, oldest first. A view's roll comes last, so that it is the last to be dropped.
func compareViews(v, w *View) int {
	return cmp.Or(cmp.Compare(v.number, w.number), cmp.Compare(min(len(v.before), 1), min(len(w.before), 1)), v.id.compare(w.id))
}

// newView writes and signs a record.
func newView(u *Universe, s Signer, domain string, v View) (*View, error) {
	p := tlv.AppendUint64(tlv.AppendVersion(nil, viewVersion), tagNumber, v.number)
	writer := s.ID()
	p = tlv.Append(p, tagWriter, writer[:])
	removed := slices.SortedFunc(slices.Values(v.removed), func(a, b Named) int { return a.Node.Compare(b.Node) })
	p = tlv.AppendList(p, tagRemoved, encodeNamed(removed))
	p = appendIDs(p, tagConfirmed, v.confirmed)
	p = tlv.AppendBool(p, tagForced, v.forced)
	p = appendIDs(p, tagBefore, v.before)
	raw := tlv.Append(nil, tagPayload, p)
	raw = tlv.Append(raw, tagSignature, s.Sign(domain, u.signed(p)))
	return parseView(raw)
}

func encodeNamed(removed []Named) [][]byte {
	list := make([][]byte, len(removed))
	for i, n := range removed {
		list[i] = binary.BigEndian.AppendUint64(bytes.Clone(n.Node[:]), n.Incarnation)
	}
	return list
}

// appendIDs writes names, ascending, one after the other.
func appendIDs[T ~[16]byte](p []byte, tag uint16, ids []T) []byte {
	if len(ids) == 0 {
		return p
	}
	var b []byte
	for _, id := range slices.SortedFunc(slices.Values(ids), compareIDs[T]) {
		b = append(b, id[:]...)
	}
	return tlv.Append(p, tag, b)
}

func readIDs[T ~[16]byte](r *tlv.Reader, tag uint16, most int) (ids []T) {
	list := r.Bytes(tag, most*16)
	if len(list)%16 != 0 {
		r.Fail(fmt.Errorf("names of %d bytes", len(list)))
		return nil
	}
	for b := range slices.Chunk(list, 16) {
		var id T
		copy(id[:], b)
		ids = append(ids, id)
	}
	return ids
}

func compareIDs[T ~[16]byte](a, b T) int { return bytes.Compare(a[:], b[:]) }

// parseView reads one record and checks all that can be checked without keys. It keeps no part of raw.
func parseView(raw []byte) (*View, error) {
	if len(raw) > maxViewRecord {
		return nil, fmt.Errorf("view record of %d bytes, at most %d", len(raw), maxViewRecord)
	}
	raw = slices.Clone(raw)
	payload, sig, err := openEnvelope("view record", raw)
	if err != nil {
		return nil, err
	}
	_, f, err := tlv.ParseVersioned("view record", payload, viewVersion)
	if err != nil {
		return nil, err
	}
	v := &View{payload: payload, sig: sig, raw: raw}
	r := tlv.NewReader(f)
	r.Require(tagNumber, tagWriter, tagRemoved)
	v.number = r.Uint64(tagNumber)
	r.Copy(tagWriter, v.writer[:])
	v.forced = r.Bool(tagForced)
	for _, b := range r.List(tagRemoved, MaxNamed) {
		if len(b) < namedSize { // a newer weft may say more
			r.Fail(fmt.Errorf("a removed member of %d bytes", len(b)))
			break
		}
		v.removed = append(v.removed, Named{peer.ID(b[:peer.IDSize]), binary.BigEndian.Uint64(b[peer.IDSize:])})
	}
	v.confirmed = readIDs[ID](r, tagConfirmed, MaxGrants)
	v.before = readIDs[peer.ID](r, tagBefore, maxOld)
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("parse view record: %w", err)
	}
	switch {
	case v.number == 0 || v.number > MaxView:
		return nil, fmt.Errorf("view record: number %d out of range", v.number)
	case v.writer.IsZero():
		return nil, errors.New("view record: without a writer")
	case len(v.removed) == 0:
		return nil, errors.New("view record: removes nobody")
	case !ascends(v.removed, func(a, b Named) int { return a.Node.Compare(b.Node) }) || !ascends(v.confirmed, ID.compare),
		!ascends(v.before, peer.ID.Compare):
		return nil, errors.New("view record: lists out of order")
	case v.Names(v.writer) || slices.Contains(v.before, v.writer):
		return nil, errors.New("view record: removes its writer")
	}
	v.id = idOf(raw)
	return v, nil
}

// ascends reports whether a list is in order without repetition.
func ascends[T any](list []T, compare func(a, b T) int) bool {
	for i := 1; i < len(list); i++ {
		if compare(list[i-1], list[i]) >= 0 {
			return false
		}
	}
	return true
}

// keepViews picks what stays of records, which ascend: those that a takeover rests on, and the newest until they fill the
// window. The window is what lets a member that comes late accept what its own promise made it refuse. The record that
// overflows it stays, so that whatever is dropped has a full window above it: then what stays does not depend on the
// order in which records came.
func keepViews(all []*View, needed map[ID]bool) []*View {
	kept := make([]*View, 0, len(all))
	room := window
	for _, v := range slices.Backward(all) {
		if room > 0 || needed[v.id] {
			kept = append(kept, v)
		}
		room -= len(v.raw)
	}
	slices.Reverse(kept)
	return kept
}
