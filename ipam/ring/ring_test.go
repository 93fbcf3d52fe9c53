package ring

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weft/crypto/identity"
	"weft/mesh/peer"
)

// world is a cluster whose first key is the founder's.
type world struct {
	keys []identity.Key
	u    *Universe
}

func newWorld(t testing.TB, members int, pools ...Pool) *world {
	t.Helper()
	w := &world{}
	for i := range members {
		seed := make([]byte, ed25519.SeedSize)
		binary.BigEndian.PutUint64(seed, uint64(i+1))
		key, err := identity.ParseKey(seed)
		if err != nil {
			t.Fatal(err)
		}
		w.keys = append(w.keys, key)
	}
	u, err := NewUniverse([32]byte{1}, w.keys[0].ID(), pools)
	if err != nil {
		t.Fatal(err)
	}
	w.u = u
	return w
}

func (w *world) id(i int) peer.ID { return w.keys[i].ID() }

func (w *world) lookup(id peer.ID) (ed25519.PublicKey, bool) {
	for _, k := range w.keys {
		if k.ID() == id {
			return k.Public(), true
		}
	}
	return nil, false
}

// judge knows everybody, and believes that everybody but the founder was removed and that the first three may remove.
func (w *world) judge(known *Ring) Judge {
	return Judge{
		Verify:  Keys(w.lookup),
		Issued:  func(id peer.ID) bool { return slices.Contains([]peer.ID{w.id(0), w.id(1), w.id(2)}, id) },
		Removed: func(id peer.ID) bool { return id != w.id(0) },
		Known:   known,
	}
}

func (w *world) grant(t testing.TB, r *Ring, from int, block string, to int) (*Ring, []*Grant) {
	t.Helper()
	next, report, err := r.Grant(w.keys[from], netip.MustParsePrefix(block), w.id(to))
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Check(); err != nil {
		t.Fatal(err)
	}
	if err := next.CheckSuccessor(r); err != nil {
		t.Fatal(err)
	}
	return next, report.Added
}

func (w *world) merge(t testing.TB, r *Ring, wire []byte) (*Ring, Report, []Rejection) {
	t.Helper()
	b, err := Decode(w.u, wire)
	if err != nil {
		t.Fatal(err)
	}
	p := w.u.Prove(b, w.judge(r))
	next, report := r.Merge(p)
	return next, report, p.Rejected()
}

func pool(prefix string, bits int) Pool { return Pool{netip.MustParsePrefix(prefix), bits} }

func prefixes(ss ...string) (ps []netip.Prefix) {
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func comparePrefix(a, b netip.Prefix) bool { return a == b }

func wantBlocks(t *testing.T, r *Ring, owner peer.ID, want ...string) {
	t.Helper()
	if d := cmp.Diff(prefixes(want...), r.Blocks(owner), cmp.Comparer(comparePrefix)); d != "" {
		t.Errorf("blocks of %s (-want +got):\n%s", owner.Short(), d)
	}
}

func TestTheFounderOwnsEverythingAtFirst(t *testing.T) {
	w := newWorld(t, 2, pool("10.32.0.0/12", 26), pool("10.192.0.0/12", 26))
	r := New(w.u)
	wantBlocks(t, r, w.id(0), "10.32.0.0/12", "10.192.0.0/12")
	wantBlocks(t, r, w.id(1))
	if err := r.Check(); err != nil {
		t.Error(err)
	}
	if owner, ok := r.Owner(netip.MustParseAddr("10.47.255.255")); !ok || owner != w.id(0) {
		t.Errorf("owner of the last address: %s, %v", owner, ok)
	}
	if _, ok := r.Owner(netip.MustParseAddr("10.48.0.0")); ok {
		t.Error("an address outside the pools has an owner")
	}
}

func TestHalvesTravelAlongAChainOfGrants(t *testing.T) {
	w := newWorld(t, 4, pool("10.32.0.0/12", 26))
	r := New(w.u)
	r, _ = w.grant(t, r, 0, "10.40.0.0/13", 1)
	r, _ = w.grant(t, r, 1, "10.44.0.0/14", 2)
	r, last := w.grant(t, r, 2, "10.46.0.0/15", 3)
	wantBlocks(t, r, w.id(0), "10.32.0.0/13")
	wantBlocks(t, r, w.id(1), "10.40.0.0/14")
	wantBlocks(t, r, w.id(2), "10.44.0.0/15")
	wantBlocks(t, r, w.id(3), "10.46.0.0/15")

	// The proof of the last grant alone carries the whole chain, and teaches all of it.
	got, report, rejected := w.merge(t, New(w.u), r.Proof(last))
	if len(rejected) != 0 || len(report.Added) != 3 {
		t.Fatalf("added %d, rejected %v", len(report.Added), rejected)
	}
	if !bytes.Equal(got.Digest(), r.Digest()) {
		t.Error("states differ")
	}
}

func TestABlockThatComesBackForgetsTheDetour(t *testing.T) {
	alone(t)
	w := newWorld(t, 4, pool("10.32.0.0/12", 26))
	r := New(w.u)
	for range 3 * MaxDepth {
		r, _ = w.grant(t, r, 0, "10.40.0.0/13", 1)
		r, _ = w.grant(t, r, 1, "10.40.0.0/13", 2)
		r, _ = w.grant(t, r, 2, "10.40.0.0/13", 0)
	}
	wantBlocks(t, r, w.id(0), "10.32.0.0/12")
	if r.Len() > 3 {
		t.Errorf("%d grants are kept for one block that went around", r.Len())
	}
	// The whole pool comes from one root again, though its atoms have different numbers.
	r, grants := w.grant(t, r, 0, "10.32.0.0/12", 3)
	if len(grants) != 1 || r.Len() != 1 {
		t.Errorf("%d grants written, %d kept", len(grants), r.Len())
	}
}

func TestABlockOfSeveralOriginsTakesOneGrantForEach(t *testing.T) {
	w := newWorld(t, 4, pool("10.32.0.0/24", 28))
	r := New(w.u)
	r, _ = w.grant(t, r, 0, "10.32.0.0/25", 1)
	r, _ = w.grant(t, r, 0, "10.32.0.128/26", 2)
	r, _ = w.grant(t, r, 2, "10.32.0.128/26", 1)
	wantBlocks(t, r, w.id(1), "10.32.0.0/25", "10.32.0.128/26")
	if _, _, err := r.Grant(w.keys[1], netip.MustParsePrefix("10.32.0.0/24"), w.id(3)); err == nil {
		t.Error("granted more than it owns")
	}
	r, _ = w.grant(t, r, 0, "10.32.0.192/26", 1)
	r, grants := w.grant(t, r, 1, "10.32.0.0/24", 3)
	if len(grants) != 3 {
		t.Errorf("%d grants, want 3", len(grants))
	}
	wantBlocks(t, r, w.id(3), "10.32.0.0/24")
}

func TestWhatIsRefused(t *testing.T) {
	w := newWorld(t, 4, pool("10.32.0.0/12", 26))
	block := netip.MustParsePrefix("10.40.0.0/13")
	right := newGrant(w.u, w.keys[0], block, 0, 1, w.id(1), ID{})
	links := func(gs ...*Grant) map[ID]*Grant {
		m := make(map[ID]*Grant)
		for _, g := range gs {
			m[g.id] = g
		}
		return m
	}
	forged := slices.Clone(right.raw)
	forged[len(forged)-1] ^= 1
	forgery, err := parseGrant(w.u, forged)
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewUniverse([32]byte{2}, w.id(0), w.u.pools)
	if err != nil {
		t.Fatal(err)
	}
	long := []*Grant{newGrant(w.u, w.keys[0], block, 0, 1, w.id(0), ID{})}
	for i := range MaxDepth {
		long = append(long, newGrant(w.u, w.keys[0], block, 0, uint64(i+2), w.id(0), long[i].id))
	}
	for _, tt := range []struct {
		name     string
		grants   []*Grant
		accepted int
	}{
		{"a right grant", []*Grant{right}, 1},
		{"a grant by somebody who owns nothing", []*Grant{newGrant(w.u, w.keys[2], block, 0, 1, w.id(2), ID{})}, 0},
		{"a forged signature", []*Grant{forgery}, 0},
		{"a forged signature beside a right one", []*Grant{forgery, right}, 1},
		{"a grant of another cluster", []*Grant{newGrant(other, w.keys[0], block, 0, 1, w.id(1), ID{})}, 0},
		{"a grant of more than came with the parent", []*Grant{
			right,
			newGrant(w.u, w.keys[1], netip.MustParsePrefix("10.32.0.0/12"), 0, 2, w.id(2), right.id),
		}, 1},
		{"a grant by somebody else than the parent's owner", []*Grant{
			right,
			newGrant(w.u, w.keys[2], block, 0, 2, w.id(2), right.id),
		}, 1},
		{"a grant with its parent's number", []*Grant{
			right,
			newGrant(w.u, w.keys[1], block, 0, 1, w.id(2), right.id),
		}, 1},
		{"a grant in a later view", []*Grant{
			right,
			newGrant(w.u, w.keys[1], block, 1, 2, w.id(2), right.id),
		}, 1},
		{"a grant in a later view by the founder", []*Grant{newGrant(w.u, w.keys[0], block, 1, 1, w.id(2), ID{})}, 0},
		{"a grant without its parent", []*Grant{newGrant(w.u, w.keys[1], block, 0, 2, w.id(2), right.id)}, 0},
		{"a grant that goes on from a forgery", []*Grant{
			forgery,
			newGrant(w.u, w.keys[1], block, 0, 2, w.id(2), forgery.id),
		}, 0},
		{"a chain that is too long", long, MaxDepth},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := Decode(w.u, encode(links(tt.grants...), nil))
			if err != nil {
				t.Fatal(err)
			}
			p := w.u.Prove(b, w.judge(nil))
			if len(p.grants) != tt.accepted || len(p.Rejected()) != len(tt.grants)-tt.accepted {
				t.Errorf("accepted %d of %d, want %d: %v", len(p.grants), len(tt.grants), tt.accepted, p.Rejected())
			}
			r, _ := New(w.u).Merge(p)
			if err := r.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAnUnknownGrantorIsProvenWhenItsKeyArrives(t *testing.T) {
	w := newWorld(t, 4, pool("10.32.0.0/12", 26))
	r := New(w.u)
	r, _ = w.grant(t, r, 0, "10.40.0.0/13", 1)
	r, _ = w.grant(t, r, 1, "10.44.0.0/14", 2)
	absent := w.id(1)
	verify := Keys(func(id peer.ID) (ed25519.PublicKey, bool) {
		if id == absent {
			return nil, false
		}
		return w.lookup(id)
	})
	b, err := Decode(w.u, r.Encode())
	if err != nil {
		t.Fatal(err)
	}
	judge := w.judge(nil)
	judge.Verify = verify
	got, _ := New(w.u).Merge(w.u.Prove(b, judge))
	wantBlocks(t, got, w.id(1), "10.40.0.0/13") // as far as it is proven
	absent = peer.ID{}
	judge.Known = got
	got, _ = got.Merge(w.u.Prove(b, judge))
	wantBlocks(t, got, w.id(2), "10.44.0.0/14")
}

func TestWritingTwiceIsReportedAndDecidedAlikeEverywhere(t *testing.T) {
	w := newWorld(t, 3, pool("10.32.0.0/12", 26))
	one, _ := w.grant(t, New(w.u), 0, "10.40.0.0/13", 1)
	two, _ := w.grant(t, New(w.u), 0, "10.40.0.0/14", 2)
	if one.CheckPeers(two) == nil {
		t.Error("the double grant is not found")
	}
	a, report, _ := w.merge(t, one, two.Encode())
	b, _, _ := w.merge(t, two, one.Encode())
	if !bytes.Equal(a.Encode(), b.Encode()) {
		t.Error("the order of merging decides")
	}
	if len(report.Conflicts) != 1 {
		t.Errorf("%d conflicts, want 1", len(report.Conflicts))
	}
	if err := a.Check(); err != nil {
		t.Error(err)
	}
}

func TestUnknownFieldsOfAGrantAreKept(t *testing.T) {
	w := newWorld(t, 2, pool("10.32.0.0/12", 26))
	g := newerGrant(w, "10.40.0.0/13", 1)
	r, _, rejected := w.merge(t, New(w.u), encode(map[ID]*Grant{g.id: g}, nil))
	if len(rejected) != 0 {
		t.Fatal(rejected)
	}
	wantBlocks(t, r, w.id(1), "10.40.0.0/13")
	if !bytes.Contains(r.Encode(), []byte("from the future")) {
		t.Error("a field was lost")
	}
}

func TestHeirsAreTheGiversThenTheBuddy(t *testing.T) {
	w := newWorld(t, 4, pool("10.32.0.0/12", 26))
	r := New(w.u)
	r, _ = w.grant(t, r, 0, "10.40.0.0/13", 1)
	r, _ = w.grant(t, r, 1, "10.44.0.0/14", 2)
	r, _ = w.grant(t, r, 1, "10.40.0.0/14", 3)
	got := r.Heirs(netip.MustParsePrefix("10.44.0.0/14"))
	if want := []peer.ID{w.id(1), w.id(0), w.id(3)}; !slices.Equal(got, want) {
		t.Errorf("heirs %v, want %v", got, want)
	}
}

func TestRestoreIsWhatWasStored(t *testing.T) {
	w := newWorld(t, 3, pool("10.32.0.0/12", 26))
	r := New(w.u)
	r, _ = w.grant(t, r, 0, "10.40.0.0/13", 1)
	r, _ = w.grant(t, r, 1, "10.44.0.0/14", 2)
	var raws [][]byte
	for g := range r.Links {
		raws = append(raws, g.Raw())
	}
	got, rejected := Restore(w.u, raws, nil)
	if len(rejected) != 0 || !bytes.Equal(got.Digest(), r.Digest()) {
		t.Errorf("restored another state; rejected %v", rejected)
	}
}

func TestUniverse(t *testing.T) {
	for _, tt := range []struct {
		name  string
		pools []Pool
		err   string
	}{
		{"a /12 in /26", []Pool{pool("10.32.0.0/12", 26)}, ""},
		{"two families", []Pool{pool("10.32.0.0/12", 26), pool("fd00:1::/48", 64)}, ""},
		{"an atom per address", []Pool{pool("10.0.0.0/24", 32), pool("fd00::/124", 128)}, ""},
		{"one atom", []Pool{pool("10.0.0.0/24", 24)}, ""},
		{"everything", []Pool{pool("0.0.0.0/0", 16), pool("::/0", 16)}, ""},
		{"no pool", nil, "0 pools, want 1 to 16"},
		{"host bits", []Pool{pool("10.0.0.1/24", 26)}, "pool 10.0.0.1/24: not a prefix with its host bits zero"},
		{"mapped", []Pool{pool("::ffff:10.0.0.0/104", 120)}, "pool ::ffff:10.0.0.0/104: not a prefix with its host bits zero"},
		{"overlap", []Pool{pool("10.0.0.0/8", 24), pool("10.1.0.0/16", 24)}, "pools 10.0.0.0/8 and 10.1.0.0/16 overlap"},
		{"an atom larger than its pool", []Pool{pool("10.0.0.0/24", 23)}, "pool 10.0.0.0/24: atoms of /23 do not fit"},
		{"too many atoms", []Pool{pool("10.0.0.0/8", 25)}, "pool 10.0.0.0/8: more than 65536 atoms of /25"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, err := NewUniverse([32]byte{}, peer.ID{1}, tt.pools)
			if got := fmt.Sprint(err); err != nil && got != tt.err || err == nil && tt.err != "" {
				t.Fatalf("error %q, want %q", got, tt.err)
			}
			if err != nil {
				return
			}
			for _, i := range []int{0, 1, u.Atoms() / 2, u.Atoms() - 2, u.Atoms() - 1} {
				if i < 0 || i >= u.Atoms() {
					continue
				}
				block := u.Block(i, 1)
				if from, to, ok := u.Range(block); !ok || from != i || to != i+1 {
					t.Errorf("atom %d is %s is [%d, %d) %v", i, block, from, to, ok)
				}
				if at, ok := u.atomOf(block.Addr()); !ok || at != i {
					t.Errorf("atom %d of %s is %d, %v", i, block.Addr(), at, ok)
				}
			}
			for k, p := range u.Pools() {
				from, to, ok := u.Range(p.Prefix)
				if !ok || from != u.first[k] || u.Block(from, to-from) != p.Prefix {
					t.Errorf("pool %s is [%d, %d) %v", p.Prefix, from, to, ok)
				}
			}
		})
	}
}

// newerGrant is a grant by the founder as a later version may write it.
func newerGrant(w *world, block string, to int) *Grant {
	g := newGrant(w.u, w.keys[0], netip.MustParsePrefix(block), 0, 1, w.id(to), ID{})
	payload := appendField(slices.Clone(g.payload), 99, "from the future")
	payload[0]++ // the minor version
	raw := appendField(nil, tagPayload, string(payload))
	raw = appendField(raw, tagSignature, string(w.keys[0].Sign(grantDomain, w.u.signed(payload))))
	g, err := parseGrant(w.u, raw)
	if err != nil {
		panic(err)
	}
	return g
}

func appendField(dst []byte, tag uint16, value string) []byte {
	dst = binary.BigEndian.AppendUint16(dst, tag)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(value)))
	return append(dst, value...)
}
