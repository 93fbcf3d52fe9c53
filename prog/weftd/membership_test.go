package weftd

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/crypto/identity"
	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// testMembership is that of a founder, always the same one.
func testMembership(t testing.TB) (*membership, identity.Key) {
	t.Helper()
	key, err1 := identity.ParseKey(bytes.Repeat([]byte{1}, 32))
	root, err2 := identity.ParseKey(bytes.Repeat([]byte{2}, 32))
	pool, err3 := identity.NewPool(netip.MustParsePrefix("10.32.0.0/12"))
	spec := identity.ClusterSpec{Pools: []identity.Pool{pool}, Linked6: netip.MustParsePrefix("fd00::/96")}
	m, err4 := found(key, root, "alpha", spec, time.Unix(1_800_000_000, 0))
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return m, key
}

func TestMembershipProperty(t *testing.T) {
	base, _ := testMembership(t)
	rapid.Check(t, func(t *rapid.T) {
		some := rapid.SliceOfN(rapid.Byte(), 1, 40)
		m := *base
		m.items = rapid.SliceOfN(some, 0, 5).Draw(t, "items")
		m.records, m.ring = some.Draw(t, "records"), some.Draw(t, "ring")
		if rapid.Bool().Draw(t, "joined") {
			m.sponsor = peer.ID{rapid.ByteRange(1, 255).Draw(t, "sponsor")}
			m.endpoint = netip.MustParseAddrPort("192.0.2.1:6783")
		}
		if rapid.Bool().Draw(t, "advertises") {
			m.advertise = []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:1"), netip.MustParseAddrPort("192.0.2.9:0")}
		}
		b := m.append(nil)
		got, err := parseMembership(b)
		if err != nil {
			t.Fatal(err)
		}
		if again := got.append(nil); !bytes.Equal(again, b) {
			t.Fatalf("encoded again: %x, want %x", again, b)
		}
		if !slices.Equal(got.advertise, m.advertise) || got.sponsor != m.sponsor || got.endpoint != m.endpoint {
			t.Fatalf("got %+v, want %+v", got, m)
		}
		cut := rapid.IntRange(0, len(b)-1).Draw(t, "cut")
		if got, err := parseMembership(b[:cut]); err == nil && bytes.Equal(got.append(nil), b) {
			t.Fatal("half of it is the whole")
		}
	})
}

// TestMembershipOfNewer: what a newer weft of this major version adds is no obstacle.
func TestMembershipOfNewer(t *testing.T) {
	m, _ := testMembership(t)
	b := tlv.AppendString(m.append(nil), 900, "new")
	b[0]++
	if _, err := parseMembership(b); err != nil {
		t.Error(err)
	}
	m.advertise = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:1")}
	if got := m.advertised(Config{}); !slices.Equal(got, m.advertise) {
		t.Errorf("advertised %v", got)
	}
	told := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.10:2")}
	if got := m.advertised(Config{Advertise: told}); !slices.Equal(got, told) {
		t.Errorf("the configuration does not win: %v", got)
	}
}

func TestLoadMembership(t *testing.T) {
	m, key := testMembership(t)
	s := openTestState(t, t.TempDir())
	if got, _, err := loadMembership(s); got != nil || err != nil {
		t.Errorf("an empty state: %v, %v", got, err)
	}
	if err := m.admit(s); err != nil {
		t.Fatal(err)
	}
	if _, _, err := loadMembership(s); err == nil {
		t.Error("a membership without its key was accepted")
	}
	for name, k := range map[string]identity.Key{"another's": must(identity.NewKey())(t), "ours": key} {
		if err := s.writeKey(fileIdentity, k.Signer()); err != nil {
			t.Fatal(err)
		}
		if _, _, err := loadMembership(s); (err == nil) != (name == "ours") {
			t.Errorf("%s key: %v", name, err)
		}
	}
}

func FuzzMembership(f *testing.F) {
	m, _ := testMembership(f)
	f.Add(m.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMembership(b)
		if err != nil {
			return
		}
		once := m.append(nil)
		again, err := parseMembership(once)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if !bytes.Equal(once, again.append(nil)) {
			t.Fatal("it changes each time that it is written")
		}
	})
}

// TestMembershipCorpus keeps a few shapes in the corpus that fuzzing starts from; UPDATE=1 writes them anew.
func TestMembershipCorpus(t *testing.T) {
	m, _ := testMembership(t)
	shapes := map[string][]byte{"founder": m.append(nil)}
	m.sponsor, m.endpoint = peer.ID{7}, netip.MustParseAddrPort("192.0.2.1:6783")
	m.records, m.ring = []byte{1, 2}, []byte{3}
	m.advertise = []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:0")}
	shapes["joined"] = m.append(nil)
	shapes["torn"] = shapes["joined"][:100]
	shapes["newer"] = append([]byte{0x20}, shapes["founder"][1:]...)
	for name, b := range shapes {
		file := filepath.Join("testdata", "fuzz", "FuzzMembership", name)
		want := []byte("go test fuzz v1\n[]byte(" + strconv.Quote(string(b)) + ")\n")
		if os.Getenv("UPDATE") != "" {
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, want, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what this build writes (%v); if the format may change, run with UPDATE=1", file, err)
		}
	}
}
