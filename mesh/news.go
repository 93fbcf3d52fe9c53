package mesh

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// Limits of news.
const (
	maxNews       = 900 // bytes of one piece: what is longer is pulled
	newsQueue     = 256 // pieces that wait to be told; the oldest gives way, and is pulled
	newsInbox     = 256 // datagrams with news that wait to be merged; more are dropped
	newsDatagrams = 4   // for one member at once
	newsSeen      = 4096
	maxPieces     = 32 // in one datagram

	livelyFor  = 500 * time.Millisecond // after the last piece, states that differ are about to become equal by themselves
	newsLate   = 150 * time.Millisecond // a digest may overtake the news; of a state of which there was some
	livelyPull = time.Second            // until then they are pulled this often
)

// piece is a small change of a replicated state, told to others together with the digests: most of them then need not
// open a stream to ask for it.
type piece struct {
	name    string
	about   string // whatever it is about; a newer piece about the same takes its place
	content []byte // what the replica's Merge takes
	hash    sum
	told    int // times that it was told, or heard from others: the more who know it, the less there is to tell
}

// Announce says that the state of that name has changed here, by what content holds: Merge turns the state as it was
// into the state as it is. It travels to all members by itself while it is short; otherwise it is Changed.
func (m *Mesh) Announce(name string, content []byte) {
	m.sync.announce(name, content)
	m.Changed(name)
}

func (s *syncer) announce(name string, content []byte) {
	if len(content) == 0 || len(content) > maxNews {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.replicas[name]
	if r == nil {
		return
	}
	var about string
	if r, ok := r.(recordsReplica); ok {
		about = r.about(content)
		s.pieces = slices.DeleteFunc(s.pieces, func(p *piece) bool { return about != "" && p.name == name && p.about == about })
	}
	s.remember(newsHash(name, content))
	s.stir(name)
	if len(s.pieces) == newsQueue {
		s.pieces = slices.Delete(s.pieces, 0, 1)
	}
	s.pieces = append(s.pieces, &piece{name: name, about: about, content: content, hash: newsHash(name, content)})
}

// remember is called with the lock held. What was seen is not merged again.
func (s *syncer) remember(h sum) {
	if _, known := s.seen[h]; known {
		return
	}
	if len(s.seenOrder) < newsSeen {
		s.seenOrder = append(s.seenOrder, h)
	} else {
		delete(s.seen, s.seenOrder[s.seenNext])
		s.seenOrder[s.seenNext] = h
		s.seenNext = (s.seenNext + 1) % newsSeen
	}
	s.seen[h] = struct{}{}
}

// heardAgain counts a piece that others know already. It is called with the lock held.
func (s *syncer) heardAgain(h sum) {
	for i, p := range s.pieces {
		if p.hash != h {
			continue
		}
		if p.told++; p.told >= spreadRounds {
			s.pieces = slices.Delete(s.pieces, i, i+1)
		}
		return
	}
}

func newsHash(name string, content []byte) sum {
	d := sha256.New()
	d.Write([]byte{byte(len(name))})
	d.Write([]byte(name))
	d.Write(content)
	return sum(d.Sum(nil)[:len(sum{})])
}

// lively is how fast a state changes.
type lively struct {
	last   time.Time // piece of news
	pulled time.Time // when it was, or when news began to come
}

// stir notes that there is news of a state. It is called with the lock held.
func (s *syncer) stir(name string) {
	now := time.Now()
	l := s.lively[name]
	if now.Sub(l.last) > livelyFor {
		l.pulled = now
	}
	l.last = now
	s.lively[name] = l
}

// patience says whether to pull a state that differed from what a member told at that time, or how long to wait before.
// While news is under way the difference most likely is, too, and what was told before the last news is not true any more:
// then the answer is not to pull. The members tell again. It is called with the lock held.
func (s *syncer) patience(name string, at time.Time) (wait time.Duration, pull bool) {
	l, now := s.lively[name], time.Now()
	switch {
	case l.last.IsZero(): // there never was news of it
		return 0, true
	case at.Before(l.last):
		return 0, false
	case now.Before(at.Add(newsLate)):
		return at.Add(newsLate).Sub(now), true
	case !now.Before(l.last.Add(livelyFor)):
		return 0, true
	case !now.Before(l.pulled.Add(livelyPull)):
		l.pulled = now
		s.lively[name] = l
		return 0, true
	}
	return 0, false
}

// messages are the digests with the news for one round, as datagrams that fit. It counts the round, and forgets what was
// told in all of its rounds.
func (s *syncer) messages() [][]byte {
	base := digestMessage(peer.ID{}, s.digests())
	s.mu.Lock()
	defer s.mu.Unlock()
	const room = MaxDatagram - datagramHead - 8 // the field's head
	var all [][]byte
	var list [][]byte
	size := len(base)
	flush := func() {
		all = append(all, tlv.AppendList(append([]byte(nil), base...), digestNews, list))
		list, size = nil, len(base)
	}
	kept := s.pieces[:0]
	for _, p := range s.pieces {
		item := append(append([]byte{byte(len(p.name))}, p.name...), p.content...)
		if n := len(item) + 4; size+n > room || len(list) == maxPieces {
			if len(list) > 0 && len(all) < newsDatagrams {
				flush()
			}
			if size+n > room || len(all) == newsDatagrams {
				kept = append(kept, p)
				continue
			}
		}
		list = append(list, item)
		size += len(item) + 4
		if p.told++; p.told < spreadRounds {
			kept = append(kept, p)
		}
	}
	clear(s.pieces[len(kept):])
	s.pieces = kept
	if len(list) > 0 && len(all) < newsDatagrams {
		flush()
	}
	if len(all) == 0 {
		return [][]byte{base}
	}
	return all
}

// parseNews is the pieces in a digest message, as parts of it.
func parseNews(b []byte) ([]piece, error) {
	_, fields, err := tlv.ParseVersioned("digests", b, digestVersion)
	if err != nil {
		return nil, err
	}
	r := tlv.NewReader(fields)
	var news []piece
	for _, item := range r.List(digestNews, maxPieces) {
		if len(item) < 1 || item[0] == 0 || item[0] > maxReplicaName || len(item) < 2+int(item[0]) {
			return nil, fmt.Errorf("%w: a piece of news of %d bytes", tlv.ErrMalformed, len(item))
		}
		name, content := item[1:1+item[0]], item[1+item[0]:]
		news = append(news, piece{name: string(name), content: content})
	}
	return news, r.Err()
}

// letter is a digest message with news.
type letter struct {
	from    peer.ID
	digests map[string]sum
	news    []piece
}

// receive takes a digest message. Merging may wait for the disk, so it is not done here.
func (s *syncer) receive(l letter) {
	if len(l.news) == 0 {
		s.hear(l.from, l.digests)
		return
	}
	select {
	case s.letters <- l:
	default:
		s.mesh.count.dropped.Add(1)
	}
}

// runNews merges news until ctx ends: all that has come meanwhile at once, so that it is saved once.
func (s *syncer) runNews(ctx context.Context) {
	for {
		var batch []letter
		select {
		case <-ctx.Done():
			return
		case l := <-s.letters:
			batch = append(batch, l)
		}
		for len(batch) < newsInbox && len(s.letters) > 0 {
			batch = append(batch, <-s.letters)
		}
		s.absorb(batch)
		for _, l := range batch {
			s.hear(l.from, l.digests)
		}
	}
}

// absorb merges what is new of the pieces of some letters, in the order in which the replicas were registered, and tells
// what was.
func (s *syncer) absorb(batch []letter) {
	fresh := map[string][][]byte{}
	s.mu.Lock()
	order := append([]string(nil), s.order...)
	picked := map[sum]struct{}{}
	for _, l := range batch {
		for _, p := range l.news {
			h := newsHash(p.name, p.content)
			if _, known := s.seen[h]; known {
				s.heardAgain(h)
				continue
			}
			if _, again := picked[h]; again || s.replicas[p.name] == nil {
				continue
			}
			picked[h] = struct{}{}
			fresh[p.name] = append(fresh[p.name], p.content)
		}
	}
	s.mu.Unlock()
	for _, name := range order {
		if len(fresh[name]) > 0 {
			s.mergeNews(name, fresh[name])
		}
	}
}

func (s *syncer) mergeNews(name string, contents [][]byte) {
	r := s.replica(name)
	changed := false
	var err error
	if roster, ok := r.(*Roster); ok { // it saves before it shows: once is better than once for each
		before := make([]bool, len(contents))
		for i, c := range contents {
			before[i] = roster.holds(c)
		}
		err = roster.Merge(joinLists(contents))
		for i, c := range contents {
			if roster.holds(c) {
				changed = s.took(name, c, !before[i]) || changed
			}
		}
	} else {
		for _, c := range contents {
			before := sumOf(r)
			bad := r.Merge(c)
			if bad != nil {
				err = bad
				continue
			}
			changed = s.took(name, c, sumOf(r) != before) || changed
		}
	}
	if err != nil { // most likely it rests on something that has not come yet
		s.mesh.log.Debug("not all news was taken", "state", name, "err", err)
	}
	if changed {
		s.changed(name)
	}
}

// took notes that a state holds a piece of news, and passes on what is new.
func (s *syncer) took(name string, content []byte, isNew bool) bool {
	if isNew {
		s.mesh.count.news.Add(1)
		s.announce(name, content)
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remember(newsHash(name, content))
	return false
}

// joinLists makes one list of several.
func joinLists(lists [][]byte) []byte {
	b := []byte{byte(listVersion)}
	for _, l := range lists {
		if _, err := splitList(received("news", l)); err == nil && len(l) > 0 {
			b = append(b, l[1:]...) // one that is broken would take the others with it
		}
	}
	return b
}

// listOf is a list of one item.
func listOf(item []byte) []byte {
	return appendItem(append(make([]byte, 0, 1+itemHead+len(item)), byte(listVersion)), item)
}
