package mesh

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"weft/crypto/identity"
	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// stuff is signed material that properties are tested with: the same keys for all, because making them is slow.
type stuff struct {
	cluster  *identity.Cluster
	keys     []identity.Key
	items    [][]byte // good ones of a roster
	removals [][]byte // likewise, of some of the members
	records  [][]byte // good ones, several of each member
}

var makeStuff = sync.OnceValue(func() *stuff {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	seeded := func(n byte) identity.Key {
		k, err := identity.ParseKey(bytes.Repeat([]byte{n}, identity.KeySize))
		must(err)
		return k
	}
	at := time.Unix(1_800_000_000, 0)
	root := seeded(1)
	s := &stuff{}
	for i := range byte(4) {
		s.keys = append(s.keys, seeded(10+i))
	}
	var err error
	s.cluster, err = identity.NewCluster(root, identity.ClusterSpec{Founder: s.keys[0].ID(), Created: at})
	must(err)
	add := func(item identity.Item, err error) {
		must(err)
		s.items = append(s.items, item.Raw())
	}
	add(identity.Found(root, s.keys[0], "founder", at))
	d, err := identity.Delegate(root, s.keys[0].Public(), at)
	add(d, err)
	issuer := identity.Issuer{Key: s.keys[0], Delegation: d}
	token := seeded(99)
	inv, err := issuer.Invite(token.Public(), identity.Terms{NotAfter: at.Add(time.Hour), Uses: 3, Created: at})
	add(inv, err)
	later, err := issuer.Invite(token.Public(), identity.Terms{NotAfter: at.Add(2 * time.Hour), Created: at.Add(time.Minute)})
	add(later, err)
	add(issuer.Revoke(identity.KindInvitation, inv.ID(), at))
	for i, key := range s.keys[1:] {
		a, err := identity.Apply(identity.FingerprintOf(root.Public()), key, token, "")
		must(err)
		for again := range 2 { // a join that was repeated
			add(issuer.Certify(a, inv, uint64(1+i+again), at))
		}
	}
	for i := range byte(3) { // of a kind that nobody knows
		s.items = append(s.items, append([]byte{0x13, 200, 0, 0, 0, 1}, i))
	}
	members := s.items
	s.items = nil
	for _, why := range []identity.Reason{identity.Silence, identity.ByHand, identity.Stolen} {
		add(issuer.Remove(s.keys[1].ID(), why, at))
	}
	add(issuer.Remove(peer.ID{7}, identity.ByHand, at)) // whose certificate is not known
	founding, err := identity.ParseCertificate(members[0])
	must(err)
	add(identity.Leave(founding, s.keys[0], at))
	s.removals, s.items = s.items, members
	for i, key := range s.keys {
		for epoch := range uint64(3) {
			for variant := range 2 { // the same epoch twice: a key that runs twice
				raw, err := Record{ID: key.ID(), Epoch: epoch + 1, Name: fmt.Sprint("n", i), MTU: 1400 + variant}.sign(key)
				must(err)
				s.records = append(s.records, raw)
			}
		}
	}
	return s
})

type discard struct{}

func (discard) Load(string) ([]byte, error) { return nil, nil }
func (discard) Save(string, []byte) error   { return nil }

func (s *stuff) roster(t testing.TB, snapshots ...[]byte) *Roster {
	t.Helper()
	r, err := newRoster(s.cluster, discard{}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range snapshots {
		_ = r.Merge(b) // tells of the bad ones
	}
	return r
}

// holder is records of somebody who is none of the members.
func (s *stuff) holder(snapshots ...[]byte) *records {
	r := newRecords(peer.ID{1}, func(id peer.ID) (ed25519.PublicKey, bool) {
		for _, k := range s.keys {
			if k.ID() == id {
				return k.Public(), true
			}
		}
		return nil, false
	}, func(peer.ID) bool { return false }, nil)
	for _, b := range snapshots {
		_, _ = r.merge(b)
	}
	return r
}

// snapshots draws lists with good items, damaged ones and rubbish.
func snapshots(good [][]byte) *rapid.Generator[[]byte] {
	return rapid.Custom(func(t *rapid.T) []byte {
		if rapid.IntRange(0, 9).Draw(t, "rubbish") == 0 {
			return rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "bytes")
		}
		b := []byte{byte(listVersion)}
		for range rapid.IntRange(0, 12).Draw(t, "items") {
			item := bytes.Clone(rapid.SampledFrom(good).Draw(t, "item"))
			if rapid.IntRange(0, 4).Draw(t, "damage") == 0 {
				i := rapid.IntRange(0, len(item)-1).Draw(t, "at")
				item[i] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
			}
			b = appendItem(b, item)
		}
		if rapid.IntRange(0, 4).Draw(t, "cut") == 0 {
			b = b[:rapid.IntRange(0, len(b)).Draw(t, "to")]
		}
		return b
	})
}

func TestRosterMergeIsASemilattice(t *testing.T) {
	if RaceEnabled {
		t.Skip("nothing runs beside it; runs without the race detector")
	}
	s := makeStuff()
	rapid.Check(t, func(rt *rapid.T) {
		gen := snapshots(slices.Concat(s.items, s.removals))
		a, b, c := gen.Draw(rt, "a"), gen.Draw(rt, "b"), gen.Draw(rt, "c")
		ab, ba := s.roster(t, a, b), s.roster(t, b, a)
		same(rt, "commutative", ab, ba)
		bc := s.roster(t, b, c)
		same(rt, "associative", s.roster(t, ab.Snapshot(), c), s.roster(t, a, bc.Snapshot()))
		same(rt, "idempotent", ab, s.roster(t, a, b, a, b, ab.Snapshot()))
		same(rt, "by delta", s.roster(t, a, ab.Delta(s.roster(t, a).Summary())), ab)
		ab.invariant(rt)
	})
}

func same(t *rapid.T, what string, a, b *Roster) {
	t.Helper()
	if diff := cmp.Diff(a.Items(), b.Items()); diff != "" {
		t.Fatalf("not %s:\n%s", what, diff)
	}
	if !bytes.Equal(a.Digest(), b.Digest()) {
		t.Fatalf("%s, but digests differ", what)
	}
	for id, inv := range a.invitations {
		other, ok := b.Invitation(id)
		if !ok || !bytes.Equal(other.Raw(), inv.Raw()) || a.Uses(id) != b.Uses(id) || a.Revoked(identity.KindInvitation, id) != b.Revoked(identity.KindInvitation, id) {
			t.Fatalf("%s, but facts differ", what)
		}
	}
	if diff := cmp.Diff(a.Voters(), b.Voters()); diff != "" {
		t.Fatalf("%s, but voters differ:\n%s", what, diff)
	}
	reasons := func(r *Roster) (all []string) {
		for _, rem := range r.Removals() {
			all = append(all, rem.Node.Short()+" "+rem.Reason.String())
		}
		return all
	}
	if diff := cmp.Diff(reasons(a), reasons(b)); diff != "" {
		t.Fatalf("%s, but removals differ:\n%s", what, diff)
	}
	if diff := cmp.Diff(a.Issuers(), b.Issuers()); diff != "" {
		t.Fatalf("%s, but issuers differ:\n%s", what, diff)
	}
}

// invariant is the invariant of a roster: facts are what items say, and every item verifies.
func (r *Roster) invariant(t *rapid.T) {
	t.Helper()
	again, err := newRoster(&identity.Cluster{Root: r.root, Founder: r.founder}, discard{}, r.Snapshot(), nil)
	if err != nil {
		t.Fatalf("its own snapshot: %v", err)
	}
	same(t, "from its snapshot alike", r, again)
	for id, members := range r.joined {
		for m := range members {
			if c := r.certificates[m]; c == nil || c.Invitation.ID() != id {
				t.Fatalf("%s did not join with %s", m, id)
			}
		}
	}
	for _, rem := range r.Removals() {
		if _, may := r.Delegation(rem.Node); may || r.Member(rem.Node) || slices.ContainsFunc(r.Voters(), func(v peer.Voter) bool { return v.ID == rem.Node }) {
			t.Fatalf("%s was removed and is a member, a voter or an issuer", rem.Node)
		}
	}
}

func TestRecordsMergeIsASemilattice(t *testing.T) {
	s := makeStuff()
	alike := func(t *rapid.T, what string, a, b *records) {
		t.Helper()
		if diff := cmp.Diff(a.byID, b.byID, cmp.AllowUnexported(stored{}), cmpopts.EquateComparable(netip.AddrPort{}, netip.Prefix{})); diff != "" {
			t.Fatalf("not %s:\n%s", what, diff)
		}
		if !bytes.Equal(a.digest(), b.digest()) {
			t.Fatalf("%s, but digests differ", what)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		gen := snapshots(s.records)
		a, b, c := gen.Draw(rt, "a"), gen.Draw(rt, "b"), gen.Draw(rt, "c")
		ab := s.holder(a, b)
		alike(rt, "commutative", ab, s.holder(b, a))
		alike(rt, "associative", s.holder(ab.snapshot(), c), s.holder(a, s.holder(b, c).snapshot()))
		alike(rt, "idempotent", ab, s.holder(a, b, b, a, ab.snapshot()))
		alike(rt, "by delta", ab, s.holder(a, ab.delta(s.holder(a).summary())))
	})
}

func TestUnknownItemsAreBoundedAlikeEverywhere(t *testing.T) {
	s := makeStuff()
	var all [][]byte
	for i := range maxForeign * 2 {
		all = append(all, append([]byte{0x10, 222, 0, 0, 0, 0}, fmt.Sprint(i)...))
	}
	half := len(all) / 2
	pack := func(items [][]byte) []byte {
		b := []byte{byte(listVersion)}
		for _, item := range items {
			b = appendItem(b, item)
		}
		return b
	}
	a := s.roster(t, pack(all[:half]), pack(all[half:]))
	b := s.roster(t, pack(all[half/2:]), pack(all[:half/2]))
	if a.unknownItems() != maxForeign || len(a.Items()) != maxForeign {
		t.Errorf("%d kept, want %d", a.unknownItems(), maxForeign)
	}
	if !bytes.Equal(a.Digest(), b.Digest()) {
		t.Error("which ones are kept depends on the order")
	}
}

func TestRosterRefuses(t *testing.T) {
	s := makeStuff()
	r := s.roster(t)
	foreign, _ := identity.ParseKey(bytes.Repeat([]byte{77}, identity.KeySize))
	at := time.Unix(1_800_000_000, 0)
	stranger, err := identity.Found(foreign, s.keys[0], "", at)
	if err != nil {
		t.Fatal(err)
	}
	root, _ := identity.ParseKey(bytes.Repeat([]byte{1}, identity.KeySize))
	second, err := identity.Found(root, s.keys[1], "", at)
	if err != nil {
		t.Fatal(err)
	}
	good, _ := identity.ParseCertificate(s.items[0])
	for _, c := range []struct {
		name string
		item identity.Item
	}{
		{"a certificate under another root", stranger},
		{"a second founder", second},
		{"the cluster itself", s.cluster},
	} {
		if err := r.Add(good, c.item); err == nil {
			t.Errorf("%s entered", c.name)
		}
		if len(r.Items()) != 0 {
			t.Errorf("%s: part of a refused list entered", c.name)
		}
	}
	if err := r.AddRaw([]byte{0x20, 6, 0, 0, 0, 0}); err == nil {
		t.Error("a newer format entered")
	} else if v := (*tlv.VersionError)(nil); !errors.As(err, &v) {
		t.Errorf("a newer format is refused with %v", err)
	}
	if err := r.Merge(appendItem(appendItem([]byte{byte(listVersion)}, stranger.Raw()), good.Raw())); err == nil {
		t.Error("a bad item in a snapshot was not told")
	}
	if !r.Has(s.keys[0].ID()) {
		t.Error("a bad item kept a good one out")
	}
}

func TestRecordForm(t *testing.T) {
	key := makeStuff().keys[0]
	full := Record{
		ID: key.ID(), Epoch: 7, Name: "node-1", Noise: [32]byte{1}, NoiseEpoch: 3, WireGuard: [32]byte{2},
		Endpoints: []netip.AddrPort{
			netip.MustParseAddrPort("192.0.2.1:6783"), netip.MustParseAddrPort("[2001:db8::1]:6783"),
		},
		Transports: []string{"wireguard", "vxlan", "sleeve"},
		Trusted:    []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		MTU:        1500, Build: "v0.1.0", Abilities: 1 << 40,
	}
	raw, err := full.sign(key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseRecord(raw)
	if diff := cmp.Diff(full, got, cmpopts.EquateComparable(netip.AddrPort{}, netip.Prefix{})); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if !verifyRecord(key.Public(), raw) {
		t.Error("its signature does not verify")
	}
	t.Logf("a usual record has %d bytes", len(raw))

	long := full
	for i := range 20 {
		long.Endpoints = append(long.Endpoints, netip.AddrPortFrom(netip.MustParseAddr("2001:db8::2"), uint16(i+1)))
	}
	long.Name = "sixty-three-characters-are-the-limit-of-a-name-in-a-cluster-yes"
	long.Build = "a build with spaces and a very long description that is cut"
	for i := range 7 {
		long.Trusted = append(long.Trusted, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 1, 1}), 16))
	}
	if raw, err = long.normal().sign(key); err != nil || len(raw) > MaxRecord {
		t.Errorf("a long record: %d bytes, %v", len(raw), err)
	}
	if got, err = parseRecord(raw); err != nil || len(got.Endpoints) == 0 || got.Endpoints[0] != full.Endpoints[0] || len(got.Trusted) != 8 {
		t.Errorf("a long record reads %+v, %v", got, err)
	}
	for _, c := range []struct {
		name string
		bad  func(*Record)
	}{
		{"no epoch", func(r *Record) { r.Epoch = 0 }},
		{"an epoch that cannot be outbid", func(r *Record) { r.Epoch = maxEpoch + 1 }},
		{"a name with a space", func(r *Record) { r.Name = "a b" }},
		{"too many trusted subnets", func(r *Record) { r.Trusted = slices.Repeat(full.Trusted, MaxTrusted+1) }},
	} {
		rec := full.clone()
		c.bad(&rec)
		if _, err := rec.sign(key); err == nil {
			t.Errorf("%s was signed", c.name)
		}
	}
}

func TestTreeFindsWhatDiffers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		keys := rapid.SliceOfDistinct(rapid.Custom(func(t *rapid.T) hash {
			return hash{rapid.Byte().Draw(t, "bucket"), rapid.Byte().Draw(t, "rest")}
		}), func(h hash) hash { return h }).Draw(t, "keys")
		var a, b tree
		wrong := map[byte]bool{}
		for _, k := range keys {
			where := rapid.IntRange(0, 2).Draw(t, "where")
			if where != 0 {
				a.add(k[0], k)
			}
			if where != 1 {
				b.add(k[0], k)
			}
			wrong[k[0]] = wrong[k[0]] || where != 2
		}
		for i, differs := range a.differing(b.summary()) {
			if differs != wrong[byte(i)] {
				t.Fatalf("bucket %d: differs %v, want %v", i, differs, wrong[byte(i)])
			}
		}
		if bytes.Equal(a.digest(), b.digest()) == slices.Contains(slices.Collect(maps.Values(wrong)), true) {
			t.Fatal("digests do not tell")
		}
		for _, k := range keys {
			b.add(k[0], k)
			a.remove(k[0], k)
		}
		if !bytes.Equal(a.digest(), new(tree).digest()) {
			t.Fatal("a tree emptied is not as one that was never filled")
		}
	})
}
