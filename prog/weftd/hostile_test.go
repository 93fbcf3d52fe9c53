package weftd

import (
	"math"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"weft/crypto/identity"
	"weft/mesh/peer"
	"weft/prog/control"
)

// A root key that an attempt to make another cluster has left is none of this cluster's.
func TestARootKeyOfAnotherClusterIsNone(t *testing.T) {
	m, _ := testMembership(t)
	s := openTestState(t, t.TempDir())
	if root, err := s.rootOf(m.cluster); !root.IsZero() || err != nil {
		t.Errorf("without one: %v", err)
	}
	must(s.keyOrNew(fileRoot))(t)
	if root, err := s.rootOf(m.cluster); !root.IsZero() || err == nil {
		t.Errorf("another's: held %v, %v", !root.IsZero(), err)
	}
	own := must(identity.ParseKey([]byte(strings.Repeat("\x02", 32))))(t)
	if err := s.writeKey(fileRoot, own.Signer()); err != nil {
		t.Fatal(err)
	}
	if root, err := s.rootOf(m.cluster); root.IsZero() || err != nil {
		t.Errorf("ours: held %v, %v", !root.IsZero(), err)
	}
}

// A number of uses is what was asked for, not what is left of it in 32 bits: 2^32 would be no limit at all.
func TestUsesDoNotWrap(t *testing.T) {
	m, _ := testMembership(t)
	root := must(identity.ParseKey([]byte(strings.Repeat("\x02", 32))))(t)
	seeds := inviteSeeds([]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:6783")}, m.certificate.ID())
	for uses, good := range map[int64]bool{math.MaxUint32: true, math.MaxUint32 + 1: false, math.MaxUint32 + 2: false, math.MaxInt64: false} {
		_, inv, err := invite(identity.Issuer{Key: root}, m.cluster, seeds, control.TokenRequest{Uses: int(uses)}, time.Now())
		if (err == nil) != good {
			t.Errorf("%d uses: %v, %v", uses, inv != nil, err)
		}
	}
}

// Who is named by the whole of an ID is meant, whatever another member calls itself.
func TestNobodyTakesAnIDForAName(t *testing.T) {
	victim := peer.ID{0xab, 0xcd}
	members := []peer.Info{{ID: peer.ID{9}, Name: victim.String()}, {ID: victim, Name: "victim"}}
	if got, err := pick(members, victim.String()); got.ID != victim || err != nil {
		t.Errorf("it is %s, %v", got.ID, err)
	}
}

// A book of addresses that is empty, as a file system may leave it after a crash, is a lost book, and is not begun anew.
func TestAnEmptyBookIsLost(t *testing.T) {
	m, key := testMembership(t)
	s := openTestState(t, t.TempDir())
	if err := m.admit(s); err != nil {
		t.Fatal(err)
	}
	if err := s.writeKey(fileIdentity, key.Signer()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := loadMembership(s); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(s.file(fileDB), 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := loadMembership(s); err == nil {
		t.Error("it is taken for a book")
	}
}
