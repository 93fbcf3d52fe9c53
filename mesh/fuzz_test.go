package mesh

import (
	"bytes"
	"crypto/ed25519"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"weft/crypto/tlv"
	"weft/mesh/peer"
	"weft/test/corpus"
)

func FuzzRecord(f *testing.F) {
	for _, raw := range makeStuff().records[:3] {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		rec, err := parseRecord(raw)
		if err != nil {
			return
		}
		verifyRecord(makeStuff().keys[0].Public(), raw)
		again := rec.append(tlv.AppendVersion(nil, recordVersion))
		got, err := parseRecord(append(again, make([]byte, ed25519.SignatureSize)...))
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if diff := cmp.Diff(rec, got, cmpopts.EquateComparable(netip.AddrPort{}, netip.Prefix{})); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzDigests(f *testing.F) {
	f.Add(digestMessage(peer.ID{}, map[string]sum{"roster": {1}, "records": {2}}))
	f.Add(digestMessage(peer.ID{9}, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		from, d, err := parseDigests(b)
		if err != nil {
			return
		}
		from2, d2, err := parseDigests(digestMessage(from, d))
		if err != nil || from2 != from || !cmp.Equal(d, d2) {
			t.Fatalf("%v %v, then %v %v %v", from, d, from2, d2, err)
		}
	})
}

func FuzzRosterMerge(f *testing.F) {
	s := makeStuff()
	f.Add(s.roster(f, appendItem([]byte{byte(listVersion)}, s.items[0])).Snapshot())
	f.Add(appendItem(appendItem([]byte{byte(listVersion)}, s.items[5]), s.items[len(s.items)-1]))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := s.roster(t, b)
		again := s.roster(t, r.Snapshot())
		if !bytes.Equal(r.Digest(), again.Digest()) {
			t.Fatal("its snapshot makes another roster")
		}
	})
}

func FuzzRecordsMerge(f *testing.F) {
	s := makeStuff()
	f.Add(s.holder(appendItem([]byte{byte(listVersion)}, s.records[0])).snapshot())
	f.Fuzz(func(t *testing.T, b []byte) {
		r := s.holder(b)
		if !bytes.Equal(r.digest(), s.holder(r.snapshot()).digest()) {
			t.Fatal("its snapshot makes other records")
		}
	})
}

func FuzzSummary(f *testing.F) {
	f.Add([]byte{}, []byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, summary, keys []byte) {
		var a tree
		for _, k := range keys {
			a.add(k, hash{k, 1})
		}
		differs := a.differing(summary)
		if bytes.Equal(summary, a.summary()) {
			for i, d := range differs {
				if d {
					t.Fatalf("bucket %d differs from itself", i)
				}
			}
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte("\x10\x04echo\x00\x00\x10\x00\x00\x00\x00\x02hi"))
	f.Fuzz(func(t *testing.T, b []byte) {
		method, _, body, err := readRequest(bytes.NewReader(b))
		if err == nil && (len(method) == 0 || len(method) > MaxMethod || len(body) > MaxMessage) {
			t.Fatalf("method of %d bytes, body of %d", len(method), len(body))
		}
	})
}

func FuzzAnswer(f *testing.F) {
	var b bytes.Buffer
	if err := writeAnswer(&b, nil, &Fault{CodeBusy, "later"}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte("\x10\x00\x00\x00\x00\x02hi"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if body, err := readAnswer(bytes.NewReader(b), 100); err == nil && len(body) > 100 {
			t.Fatalf("%d bytes", len(body))
		}
	})
}

// Whatever items a member hands over, what a roster has of them afterwards verifies and is what its own snapshot makes.
func FuzzItems(f *testing.F) {
	s := makeStuff()
	corpus.Add(f, *update, "removals", tlv.AppendList(tlv.AppendVersion(nil, itemsVersion), itemsList, s.removals))
	corpus.Add(f, *update, "members", tlv.AppendList(tlv.AppendVersion(nil, itemsVersion), itemsList, s.items))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &Mesh{roster: s.roster(t)}
		_, _ = m.serveItems(t.Context(), peer.ID{}, b) // tells of the bad ones
		again, err := newRoster(s.cluster, discard{}, m.roster.Snapshot(), nil)
		if err != nil || !bytes.Equal(again.Digest(), m.roster.Digest()) {
			t.Fatalf("the roster is not what it says: %v", err)
		}
	})
}
