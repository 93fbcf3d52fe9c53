package sparse_test

import (
	"encoding/binary"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/mesh/peer"
	"weft/mesh/sparse"
)

// again is when a large cluster has become a small one.
const again = sparse.Everybody - sparse.Everybody/sparse.Slack

var start = time.Unix(1_800_000_000, 0)

func members(n int) []peer.ID {
	ids := make([]peer.ID, n)
	for i := range ids {
		ids[i] = member(i)
	}
	return ids
}

func member(i int) (id peer.ID) {
	binary.BigEndian.PutUint32(id[:], uint32(i)+1)
	return id
}

// grow tells a book who there is, beside this node, and whether that is many.
func grow(b *sparse.Book, ids []peer.ID, now time.Time) {
	b.Set(sparse.Wanted(0, len(ids)+1, b.Sparse()), now)
	b.Members(ids)
}

func TestAllAreOpenWhileThereAreFew(t *testing.T) {
	b := sparse.New(0)
	grow(b, members(sparse.Everybody-1), start) // with this node Everybody
	if b.Sparse() || !b.Open(member(0)) || b.Count() != sparse.Everybody-1 {
		t.Fatalf("sparse %v, open %v, %d sessions", b.Sparse(), b.Open(member(0)), b.Count())
	}
	if closed := b.Sleep(start.Add(time.Hour)); len(closed) != 0 || !b.Next().IsZero() {
		t.Errorf("%d closed of a small cluster", len(closed))
	}
	if b.Touch(member(0), sparse.Data, start) {
		t.Error("what was open was opened")
	}
}

func TestGrowthClosesWhatIsNotUsed(t *testing.T) {
	b := sparse.New(0)
	grow(b, members(400), start)
	grow(b, members(600), start)
	if !b.Open(member(399)) || b.Open(member(400)) {
		t.Error("old sessions stay for now, new ones wait for traffic")
	}
	b.Touch(member(1), sparse.Data, start)
	now := start.Add(sparse.IdleControl)
	if closed := b.Sleep(now); len(closed) != 399 || b.Count() != 1 || !b.Open(member(1)) {
		t.Errorf("%d closed, %d open", len(closed), b.Count())
	}
	grow(b, members(again), now) // with this node one more than again
	if !b.Sparse() {
		t.Error("between the two numbers nothing changes")
	}
	grow(b, members(again-2), now)
	if b.Sparse() || b.Count() != again-2 {
		t.Error("a small cluster has all its sessions again")
	}
}

func TestDataLastsLongerThanControl(t *testing.T) {
	b := sparse.New(0)
	grow(b, members(1000), start)
	if !b.Touch(member(1), sparse.Control, start) || !b.Touch(member(2), sparse.Data, start) || b.Touch(member(2), sparse.Control, start) {
		t.Error("the first touch opens, the second does not")
	}
	if b.Touch(member(1000), sparse.Data, start) || b.Open(member(1000)) {
		t.Error("a stranger got a session")
	}
	if next := b.Next(); !next.Equal(start.Add(sparse.IdleControl)) {
		t.Errorf("the first closes at %v", next)
	}
	if closed := b.Sleep(start.Add(sparse.IdleControl)); len(closed) != 1 || closed[0] != member(1) {
		t.Errorf("closed %v", closed)
	}
	b.Touch(member(2), sparse.Data, start.Add(9*time.Minute))
	if closed := b.Sleep(start.Add(sparse.IdleData)); len(closed) != 0 {
		t.Errorf("closed %v, which was used a minute ago", closed)
	}
	if closed := b.Sleep(start.Add(9*time.Minute + sparse.IdleData)); len(closed) != 1 {
		t.Errorf("closed %v", closed)
	}
}

func TestPinnedStay(t *testing.T) {
	b := sparse.New(0)
	grow(b, members(1000), start)
	b.Pin([]peer.ID{member(7)}, start)
	if !b.Open(member(7)) || b.Touch(member(7), sparse.Control, start) || b.Count() != 1 {
		t.Error("a pinned one is open, and traffic does not open it")
	}
	if closed := b.Sleep(start.Add(time.Hour)); len(closed) != 0 || !b.Open(member(7)) {
		t.Errorf("closed %v", closed)
	}
	b.Pin(nil, start.Add(time.Hour))
	if !b.Open(member(7)) {
		t.Error("closed at once")
	}
	if closed := b.Sleep(start.Add(time.Hour + sparse.IdleControl)); len(closed) != 1 {
		t.Errorf("closed %v", closed)
	}
}

// Whatever happens: who is open follows from the last touches alone, nobody is told twice that a session opened or
// closed, and there are never more than the bound.
func TestBookIsWhatItsHistorySays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, now := sparse.New(0), start
		all := members(rapid.IntRange(sparse.Everybody, sparse.Everybody+20).Draw(t, "members"))
		grow(b, all, now)
		last := map[peer.ID]map[sparse.Cause]time.Time{}
		pinned := peer.Set{}
		touch := func(id peer.ID, c sparse.Cause) {
			if last[id] == nil {
				last[id] = map[sparse.Cause]time.Time{}
			}
			last[id][c] = now
		}
		due := func(id peer.ID) bool { // worth a session by its traffic
			l := last[id]
			d, data := l[sparse.Data]
			c, control := l[sparse.Control]
			return data && now.Sub(d) < sparse.IdleData || control && now.Sub(c) < sparse.IdleControl
		}
		id := rapid.Custom(func(t *rapid.T) peer.ID { return member(rapid.IntRange(0, 9).Draw(t, "peer")) })
		t.Repeat(map[string]func(*rapid.T){
			"touch": func(t *rapid.T) {
				id, c := id.Draw(t, "id"), rapid.SampledFrom([]sparse.Cause{sparse.Control, sparse.Data}).Draw(t, "cause")
				before := b.Open(id)
				if opened := b.Touch(id, c, now); opened != (!before && b.Open(id)) {
					t.Fatalf("opened %v, before %v, after %v", opened, before, b.Open(id))
				}
				touch(id, c)
			},
			"pin": func(t *rapid.T) {
				ids := rapid.SliceOfNDistinct(id, 0, 3, rapid.ID[peer.ID]).Draw(t, "ids")
				b.Pin(ids, now)
				next := peer.SetOf(ids...)
				for id := range pinned {
					if !next.Has(id) {
						touch(id, sparse.Control)
					}
				}
				pinned = next
			},
			"time": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 700).Draw(t, "seconds")) * time.Second)
				before := map[peer.ID]bool{}
				for i := range 10 {
					before[member(i)] = b.Open(member(i))
				}
				next := b.Next()
				closed := b.Sleep(now)
				if len(closed) > 0 && now.Before(next) {
					t.Fatalf("%d closed before %v", len(closed), next)
				}
				for _, id := range closed {
					if !before[id] || b.Open(id) {
						t.Fatalf("%s closed: before %v, after %v", id, before[id], b.Open(id))
					}
					before[id] = false
				}
				for i := range 10 {
					if id := member(i); b.Open(id) != before[id] || b.Open(id) != (due(id) || pinned.Has(id)) {
						t.Fatalf("%s open %v, said %v, pinned %v, by its traffic %v", id, b.Open(id), before[id], pinned.Has(id), due(id))
					}
				}
			},
			"": func(t *rapid.T) {
				open := 0
				for _, id := range all {
					if b.Open(id) {
						open++
					}
				}
				if open != b.Count() {
					t.Fatalf("%d open, counted %d", open, b.Count())
				}
			},
		})
	})
}

func TestAScanOpensABoundedNumber(t *testing.T) {
	b := sparse.New(0)
	grow(b, members(10_000), start)
	b.Pin([]peer.ID{member(3)}, start)
	now := start
	for i := range 10_000 {
		now = now.Add(time.Millisecond)
		if !b.Touch(member(i), sparse.Data, now) && i != 3 {
			t.Fatalf("number %d was refused", i)
		}
		if n := b.Count(); n > sparse.MostAwake+1 {
			t.Fatalf("%d sessions", n)
		}
	}
	if !b.Open(member(9999)) || b.Open(member(0)) || !b.Open(member(3)) {
		t.Error("the one used last and the pinned one stay, the oldest gives way")
	}
}
