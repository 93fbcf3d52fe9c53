package mesh

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weft/crypto/tlv"
	"weft/mesh/peer"
	"weft/test/corpus"
)

// blob is a replica that takes anything.
type blob struct{ b []byte }

func (b *blob) Digest() []byte       { return b.b }
func (b *blob) Snapshot() []byte     { return b.b }
func (b *blob) Merge(c []byte) error { b.b = append(b.b, c...); return nil }

// Whatever is announced: no datagram is too long, what they carry was announced, and each piece that there is room for is
// told in spreadRounds rounds and no more.
func TestNewsFitsIntoDatagrams(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := lonely(t)
		m.Replicate("blob", &blob{})
		m.Replicate("another-blob-with-a-long-name-31", &blob{})
		announced := map[string]int{}
		for i := range rapid.IntRange(0, 2*newsQueue).Draw(rt, "pieces") {
			name := rapid.SampledFrom([]string{"blob", "another-blob-with-a-long-name-31"}).Draw(rt, "name")
			content := append(fmt.Appendf(nil, "%d ", i), make([]byte, rapid.IntRange(0, maxNews).Draw(rt, "size"))...)
			m.sync.announce(name, content)
			if len(content) <= maxNews {
				announced[name+string(content)] = 0
			}
			if n := len(m.sync.pieces); n > newsQueue {
				rt.Fatalf("%d pieces wait", n)
			}
		}
		for range 10_000 {
			waiting := len(m.sync.pieces)
			all := m.sync.messages()
			if len(all) > newsDatagrams {
				rt.Fatalf("%d datagrams", len(all))
			}
			told := 0
			for _, b := range all {
				if len(b)+datagramHead > MaxDatagram {
					rt.Fatalf("a datagram of %d bytes", len(b))
				}
				if _, d, err := parseDigests(b); err != nil || len(d) != 4 {
					rt.Fatalf("%d digests, %v", len(d), err)
				}
				news, err := parseNews(b)
				if err != nil {
					rt.Fatal(err)
				}
				for _, p := range news {
					told++
					key := p.name + string(p.content)
					times, was := announced[key]
					if announced[key]++; !was || times == spreadRounds {
						rt.Fatalf("a piece of %d bytes was announced: %v, told before: %d", len(p.content), was, times)
					}
				}
			}
			if waiting == 0 {
				return
			}
			if told == 0 {
				rt.Fatalf("%d pieces wait and none is told", waiting)
			}
		}
		rt.Fatal("it never ends")
	})
}

// Pieces that others tell are told less, and what was taken once is not merged again.
func TestNewsThatAllKnowIsNotToldOn(t *testing.T) {
	m, b := lonely(t), &blob{}
	m.Replicate("blob", b)
	l := letter{from: peer.ID{1}, news: []piece{{name: "blob", content: []byte("x")}}}
	m.sync.absorb([]letter{l, l})
	if len(m.sync.pieces) != 1 || string(b.b) != "x" {
		t.Fatalf("%d pieces, merged %q", len(m.sync.pieces), b.b)
	}
	for range spreadRounds {
		m.sync.absorb([]letter{l})
	}
	if len(m.sync.pieces) != 0 || string(b.b) != "x" {
		t.Errorf("%d pieces, merged %q", len(m.sync.pieces), b.b)
	}
	for i := range 3 * newsSeen {
		m.sync.announce("blob", fmt.Append(nil, i))
	}
	if len(m.sync.seen) != newsSeen || len(m.sync.seenOrder) != newsSeen {
		t.Errorf("%d remembered in an order of %d", len(m.sync.seen), len(m.sync.seenOrder))
	}
}

// One piece that is forged or broken takes no other with it, and is not passed on.
func TestBadNewsStopsHere(t *testing.T) {
	s, m := makeStuff(), lonely(t)
	forged := slices.Clone(s.records[len(s.records)-1])
	forged[len(forged)-1] ^= 1
	news := []piece{
		{name: "roster", content: []byte{byte(listVersion), 0, 0, 0, 9, 1}},
		{name: "records", content: listOf(forged)},
		{name: "records", content: []byte("rot")},
		{name: "roster", content: listOf(s.removals[0])},
		{name: "records", content: listOf(s.records[len(s.records)-1])},
		{name: "nobody's", content: []byte("x")},
	}
	before := len(m.sync.pieces)
	m.sync.absorb([]letter{{from: peer.ID{1}, news: news}})
	var told []string
	for _, p := range m.sync.pieces[before:] {
		told = append(told, p.name)
		if bytes.Contains(p.content, forged) {
			t.Error("a forged record is told on")
		}
	}
	if !m.roster.holds(listOf(s.removals[0])) {
		t.Error("a good item was lost beside a broken one")
	}
	if len(told) == 0 || len(told) > 2 {
		t.Errorf("told on: %v", told)
	}
}

func FuzzNews(f *testing.F) {
	base := digestMessage(peer.ID{}, map[string]sum{"roster": {1}})
	pieces := func(p ...[]byte) []byte { return tlv.AppendList(slices.Clone(base), digestNews, p) }
	s := makeStuff()
	corpus.Add(f, *update, "two", pieces([]byte("\x04blobx"), []byte("\x06rosterlist")))
	corpus.Add(f, *update, "broken", pieces([]byte{0}, []byte{3, 'a'}, []byte{200}))
	corpus.Add(f, *update, "record", pieces(append([]byte("\x07records"), listOf(s.records[0])...)))
	corpus.Add(f, *update, "removal", pieces(append([]byte("\x06roster"), listOf(s.removals[0])...)))
	corpus.Add(f, *update, "none", base)
	f.Fuzz(func(t *testing.T, b []byte) {
		news, err := parseNews(b)
		if err != nil {
			return
		}
		for _, p := range news {
			if p.name == "" || len(p.name) > maxReplicaName || len(p.content) == 0 {
				t.Fatalf("a piece about %q of %d bytes", p.name, len(p.content))
			}
		}
	})
}
