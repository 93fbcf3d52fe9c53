package ring

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weft/mesh/peer"
)

// takeOver removes members in a view of the coordinator's.
func (w *world) takeOver(t testing.TB, r *Ring, coordinator int, number uint64, removed ...int) (*Ring, Report) {
	t.Helper()
	next, report, err := r.TakeOver(w.keys[coordinator], w.takeover(number, removed...))
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Check(); err != nil {
		t.Fatal(err)
	}
	if err := next.CheckSuccessor(r); err != nil {
		t.Fatal(err)
	}
	return next, report
}

func (w *world) takeover(number uint64, removed ...int) Takeover {
	yes := func(peer.ID) bool { return true }
	t := Takeover{Number: number, May: yes, Remember: yes}
	for _, i := range removed {
		t.Removed = append(t.Removed, Named{w.id(i), uint64(i)})
	}
	return t
}

func TestTheOwnerOfTheBuddyTakesABlockOver(t *testing.T) {
	w := newWorld(t, 4, pool("10.32.0.0/12", 26))
	r := New(w.u)
	r, _ = w.grant(t, r, 0, "10.40.0.0/13", 1)
	r, _ = w.grant(t, r, 1, "10.44.0.0/14", 2)
	r, _ = w.grant(t, r, 2, "10.46.0.0/15", 3)
	taken, report := w.takeOver(t, r, 0, 1, 2)
	wantBlocks(t, taken, w.id(3), "10.44.0.0/14")
	wantBlocks(t, taken, w.id(2))
	if len(report.Added) != 1 || len(report.Views) != 1 {
		t.Errorf("%d grants and %d records", len(report.Added), len(report.Views))
	}
	// The takeover rests on the record alone. Of the removed one's writings the gift to n3 stays.
	if v := report.Views[0]; !v.Names(w.id(2)) || len(v.confirmed) != 1 || taken.Len() != 4 {
		t.Errorf("confirmed %d, kept %d grants", len(v.confirmed), taken.Len())
	}
	// It proves itself to who knows nothing, and its heir can go on from it.
	got, _, rejected := w.merge(t, New(w.u), taken.Proof(report.Added))
	if owner, _ := got.Owner(netip.MustParseAddr("10.44.0.1")); owner != w.id(3) || len(rejected) != 0 {
		t.Errorf("owner %s, rejected %v", owner.Short(), rejected)
	}
	again, _ := w.grant(t, taken, 3, "10.44.0.0/15", 0)
	got, _, rejected = w.merge(t, New(w.u), again.Encode())
	if !bytes.Equal(got.Digest(), again.Digest()) || len(rejected) != 0 {
		t.Errorf("a grant after a takeover does not travel: %v", rejected)
	}
}

func TestManyViewsLeaveShortChainsAndFewRecords(t *testing.T) {
	alone(t)
	w := newWorld(t, 3, pool("10.32.0.0/20", 26))
	r := New(w.u)
	for k := range uint64(10 * MaxDepth) {
		r, _ = w.grant(t, r, 0, "10.32.8.0/21", 1)
		r, _ = w.takeOver(t, r, 0, k+1, 1)
	}
	wantBlocks(t, r, w.id(0), "10.32.0.0/20")
	if r.Len() > 2 {
		t.Errorf("%d grants are kept", r.Len())
	}
	size := 0
	for _, v := range r.Views() {
		size += len(v.Raw())
	}
	if size > window+maxViewRecord {
		t.Errorf("records of %d bytes are kept", size)
	}
}

func TestWhatOfViewsIsRefused(t *testing.T) {
	w := newWorld(t, 5, pool("10.32.0.0/12", 26))
	block := netip.MustParsePrefix("10.40.0.0/13")
	record := func(writer int, number uint64, removed ...int) *View {
		t.Helper()
		v, err := newView(w.u, w.keys[writer], viewDomain, View{number: number, removed: w.takeover(number, removed...).Removed})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	right := record(1, 7, 3)
	forged := slices.Clone(right.raw)
	forged[len(forged)-1] ^= 1
	forgery, err := parseView(forged)
	if err != nil {
		t.Fatal(err)
	}
	takeover := newTakeover(w.u, w.keys[1], block, right, w.id(3), w.id(2))
	for _, tt := range []struct {
		name     string
		grant    *Grant
		views    []*View
		accepted bool
	}{
		{"a right takeover", takeover, []*View{right}, true},
		{"a takeover without its record", takeover, nil, false},
		{"a takeover with another record", takeover, []*View{record(1, 7, 3, 4)}, false},
		{
			"a takeover by somebody else than the record's writer",
			newTakeover(w.u, w.keys[2], block, right, w.id(3), w.id(2)),
			[]*View{right},
			false,
		},
		{
			"a takeover from somebody who was not removed",
			newTakeover(w.u, w.keys[1], block, right, w.id(4), w.id(2)),
			[]*View{right},
			false,
		},
		{
			"a takeover for the removed one",
			newTakeover(w.u, w.keys[1], block, right, w.id(3), w.id(3)),
			[]*View{right},
			false,
		},
		{
			"a record by somebody who may not remove",
			newTakeover(w.u, w.keys[4], block, record(4, 7, 3), w.id(3), w.id(2)),
			[]*View{record(4, 7, 3)},
			false,
		},
		{
			"a record that removes somebody whose removal is not known",
			newTakeover(w.u, w.keys[1], block, record(1, 7, 0), w.id(0), w.id(2)),
			[]*View{record(1, 7, 0)},
			false,
		},
		{"a forged record", newTakeover(w.u, w.keys[1], block, forgery, w.id(3), w.id(2)), []*View{forgery}, false},
		{"a forged record beside a right one", takeover, []*View{right, forgery}, true},
		{
			"a grant in the view by somebody who got nothing in it",
			newGrant(w.u, w.keys[0], block, 7, 1, w.id(2), takeover.id),
			[]*View{right},
			false,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := Decode(w.u, encode(map[ID]*Grant{tt.grant.id: tt.grant}, tt.views))
			if err != nil {
				t.Fatal(err)
			}
			p := w.u.Prove(b, w.judge(nil))
			if got := len(p.grants) == 1; got != tt.accepted {
				t.Errorf("accepted: %v, rejected %v", got, p.Rejected())
			}
			r, _ := New(w.u).Merge(p)
			if err := r.Check(); err != nil {
				t.Error(err)
			}
		})
	}
	for name, number := range map[string]uint64{"a number out of range": MaxView + 1, "number zero": 0} {
		if _, err := newView(w.u, w.keys[1], viewDomain, View{number: number, removed: right.removed}); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if _, err := newView(w.u, w.keys[1], viewDomain, View{number: 1, removed: w.takeover(1, 1).Removed}); err == nil {
		t.Error("a record that removes its writer is accepted")
	}
}

// TestTheLateWritingsOfTheRemovedAreRefused plays the two sides of a removal: one knew of a grant, one did not.
func TestTheLateWritingsOfTheRemovedAreRefused(t *testing.T) {
	w := newWorld(t, 4, pool("10.32.0.0/12", 26))
	before := New(w.u)
	before, _ = w.grant(t, before, 0, "10.40.0.0/13", 1)
	known, _ := w.grant(t, before, 1, "10.44.0.0/14", 2) // one survivor has seen it
	late, _ := w.grant(t, before, 1, "10.46.0.0/15", 3)  // nobody has

	judge := func(r *Ring) Judge {
		j := w.judge(r)
		j.Refuse = func(id peer.ID) bool { return id == w.id(1) }
		return j
	}
	prove := func(r *Ring, wire []byte) (*Ring, []Rejection) {
		b, err := Decode(w.u, wire)
		if err != nil {
			t.Fatal(err)
		}
		p := w.u.Prove(b, judge(r))
		next, _ := r.Merge(p)
		return next, p.Rejected()
	}
	// Who has promised keeps what it knows, and takes nothing new.
	if same, rejected := prove(before, known.Encode()); same != before || len(rejected) != 1 ||
		!errors.Is(rejected[0].Err, ErrRefused) {
		t.Errorf("a late grant is taken; rejected %v", rejected)
	}
	// The survivor who knew has told the coordinator: the record confirms it, and the rest of the block is taken over.
	taken, _ := w.takeOver(t, known, 0, 1, 1)
	got, rejected := prove(before, taken.Encode())
	if len(rejected) != 0 || !bytes.Equal(got.Digest(), taken.Digest()) {
		t.Errorf("the confirmed grant is not taken: %v", rejected)
	}
	// The other one stays refused, now and later; where it was taken before the promise the takeover is newer.
	if _, rejected := prove(got, late.Encode()); len(rejected) != 1 {
		t.Errorf("rejected %v", rejected)
	}
	lost, _, _ := w.merge(t, late, taken.Encode())
	if owner, _ := lost.Owner(netip.MustParseAddr("10.46.0.1")); owner == w.id(3) {
		t.Error("the late grant survives the takeover")
	}
}

// TestARemovedCoordinatorsRecordNeedsALaterOne: who wrote a view and was then removed is refused like everybody else.
func TestARemovedCoordinatorsRecordNeedsALaterOne(t *testing.T) {
	w := newWorld(t, 4, pool("10.32.0.0/12", 26))
	r := New(w.u)
	r, _ = w.grant(t, r, 0, "10.40.0.0/13", 3)
	first, _ := w.takeOver(t, r, 1, 1, 3)
	second, _ := w.takeOver(t, first, 0, 2, 1)
	refuse := w.judge(r)
	refuse.Refuse = func(id peer.ID) bool { return id == w.id(1) }
	for name, tt := range map[string]struct {
		wire     []byte
		accepted int
	}{"the record alone": {first.Encode(), 0}, "confirmed by the later one": {second.Encode(), 3}} {
		b, err := Decode(w.u, tt.wire)
		if err != nil {
			t.Fatal(err)
		}
		if p := w.u.Prove(b, refuse); len(p.views) != tt.accepted {
			t.Errorf("%s: %d records accepted, want %d: %v", name, len(p.views), tt.accepted, p.Rejected())
		}
	}
}

// TestKeptRecordsDoNotDependOnTheOrder: whatever the sizes, what is kept of the union is the same for every order and
// grouping in which records are met.
func TestKeptRecordsDoNotDependOnTheOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []*View
		for i := range rapid.IntRange(1, 12).Draw(t, "records") {
			v := &View{number: uint64(i + 1), raw: make([]byte, rapid.IntRange(1, maxViewRecord).Draw(t, "size"))}
			binary.BigEndian.PutUint64(v.id[:], v.number)
			all = append(all, v)
		}
		want := keepViews(all, nil)
		order := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "order"), 0)).Perm(len(all))
		groups := [][]*View{nil, nil, nil}
		for _, i := range order {
			g := &groups[rapid.IntRange(0, 2).Draw(t, "group")]
			*g = keepViews(union(*g, all[i]), nil)
		}
		var got []*View
		for _, g := range groups {
			got = keepViews(union(got, g...), nil)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("kept %d records, want %d", len(got), len(want))
		}
	})
}

// TestWhatIsRecalledWasNotDropped: of the numbers from which on all records are kept, none was dropped, whatever the sizes.
func TestWhatIsRecalledWasNotDropped(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []*View
		needed := make(map[ID]bool)
		for i := range rapid.IntRange(1, 12).Draw(t, "records") {
			v := &View{number: uint64(i + 1), raw: make([]byte, rapid.IntRange(1, window).Draw(t, "size"))}
			binary.BigEndian.PutUint64(v.id[:], v.number)
			needed[v.id] = rapid.Bool().Draw(t, "a takeover rests on it")
			all = append(all, v)
		}
		r := &Ring{views: keepViews(all, needed)}
		newest := uint64(len(all))
		if !r.Recalls(newest + 1) {
			t.Fatal("the next view is not recalled")
		}
		if len(r.views) == 1 && newest == 1 && len(all[0].raw) < window && !r.Recalls(1) {
			t.Fatal("the only record is not recalled")
		}
		for n := newest; n > 0 && r.Recalls(n); n-- {
			if !slices.Contains(r.views, all[n-1]) {
				t.Fatalf("view %d was dropped", n)
			}
		}
	})
}

func union(some []*View, more ...*View) []*View {
	all := slices.Concat(some, more)
	slices.SortFunc(all, compareViews)
	return slices.Compact(all)
}

// TestReplacedNodesLeaveOneRouteEach removes members and lets others in their place, many times: blocks of heirs grow
// together again.
func TestReplacedNodesLeaveOneRouteEach(t *testing.T) {
	alone(t)
	const members, replaced = 100, 200
	w := newWorld(t, members+replaced, pool("10.32.0.0/18", 28))
	r := New(w.u)
	alive := []int{0}
	join := func(n int) {
		var best netip.Prefix
		lender := 0
		for _, i := range alive {
			for _, b := range r.Blocks(w.id(i)) {
				if !best.IsValid() || b.Bits() < best.Bits() {
					best, lender = b, i
				}
			}
		}
		from, to, _ := w.u.Range(best)
		lent := w.u.Block((from+to)/2, (to-from)/2)
		half := lent
		for _, b := range r.Blocks(w.id(lender)) { // as package space does: a second block goes whole
			if b != best && b.Bits() <= half.Bits()+1 && (lent == half || b.Bits() < lent.Bits()) {
				lent = b
			}
		}
		r, _ = w.grant(t, r, lender, lent.String(), n)
		alive = append(alive, n)
	}
	for n := 1; n < members; n++ {
		join(n)
	}
	d := rand.New(rand.NewPCG(1, 1))
	for k := range replaced {
		gone := 1 + d.IntN(len(alive)-1)
		r, _ = w.takeOver(t, r, 0, uint64(k+1), alive[gone])
		alive = slices.Delete(alive, gone, gone+1)
		join(members + k)
	}
	routes := 0
	for _, blocks := range r.Owners() {
		routes += len(blocks)
	}
	t.Logf("%d members, %d replaced: %d blocks, %d grants, %d records, %d bytes", members, replaced, routes, r.Len(),
		len(r.Views()), len(r.Encode()))
	if len(r.Encode()) > 150<<10 {
		t.Errorf("%d bytes", len(r.Encode()))
	}
	if gone := r.Removed(); len(gone) != replaced {
		t.Errorf("%d of %d removed are remembered", len(gone), replaced)
	}
	if routes > members+members/50 {
		t.Errorf("%d blocks of %d members", routes, members)
	}
}

// TestSizesAreAsDrawn holds what the package comment says about bytes.
func TestSizesAreAsDrawn(t *testing.T) {
	w := newWorld(t, 3, pool("10.32.0.0/12", 26))
	r, first := w.grant(t, New(w.u), 0, "10.40.0.0/13", 1)
	_, second := w.grant(t, r, 1, "10.44.0.0/14", 2)
	_, report := w.takeOver(t, r, 0, 1, 1)
	for _, tt := range []struct {
		name string
		raw  []byte
		want int
	}{
		{"the founder's grant", first[0].Raw(), 146},
		{"a grant", second[0].Raw(), 168},
		{"a takeover", report.Added[0].Raw(), 204},
		{"a record", report.Views[0].Raw(), 147},
	} {
		if len(tt.raw) != tt.want {
			t.Errorf("%s has %d bytes, want %d", tt.name, len(tt.raw), tt.want)
		}
	}
}

// alone skips a long test in which nothing runs beside it, where the race detector would find nothing.
func alone(t *testing.T) {
	t.Helper()
	if raceEnabled {
		t.Skip("nothing runs beside it; runs without the race detector")
	}
}
