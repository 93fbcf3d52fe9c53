package identity

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/crypto/tlv"
)

var update = flag.Bool("update", false, "write testdata/*.hex anew")

var day = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// fixedKey is the same key in every run.
func fixedKey(t testing.TB, n byte) Key {
	t.Helper()
	k, err := ParseKey(bytes.Repeat([]byte{n}, KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// world is one of each kind of item, all from fixed keys.
type world struct {
	root, founder, issuer, node, token Key

	cluster     *Cluster
	delegation  *Delegation
	invitation  *Invitation
	revocation  *Revocation
	application *Application
	founding    *Certificate
	certificate *Certificate
	removal     *Removal
	leaving     *Removal
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{
		root: fixedKey(t, 1), founder: fixedKey(t, 2), issuer: fixedKey(t, 3), node: fixedKey(t, 4), token: fixedKey(t, 5),
	}
	w.cluster = must(NewCluster(w.root, ClusterSpec{Founder: w.founder.ID(), Name: "lab", Created: day}))
	w.delegation = must(Delegate(w.root, w.issuer.Public(), day))
	by := Issuer{Key: w.issuer, Delegation: w.delegation}
	w.invitation = must(by.Invite(w.token.Public(), Terms{
		NotAfter: day.Add(24 * time.Hour), Uses: 3, Ephemeral: true, Tags: []string{"batch", "gpu"}, Created: day,
	}))
	w.revocation = must(by.Revoke(KindInvitation, w.invitation.ID(), day))
	w.application = must(Apply(FingerprintOf(w.root.Public()), w.node, w.token, "n4"))
	w.founding = must(Found(w.root, w.founder, "n1", day))
	w.certificate = must(by.Certify(w.application, w.invitation, 7, day))
	w.removal = must(by.Remove(w.node.ID(), Silence, day))
	w.leaving = must(Leave(w.certificate, w.node, day))
	return w
}

func (w *world) items() map[string]Item {
	return map[string]Item{
		"cluster": w.cluster, "delegation": w.delegation, "invitation": w.invitation, "revocation": w.revocation,
		"application": w.application, "founding": w.founding, "certificate": w.certificate,
		"removal": w.removal, "leaving": w.leaving,
	}
}

func TestItemsSurviveTheWire(t *testing.T) {
	w := newWorld(t)
	for name, it := range w.items() {
		got, err := Parse(it.Raw())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got.Kind() != it.Kind() || !bytes.Equal(got.Raw(), it.Raw()) {
			t.Errorf("%s: changed", name)
		}
		if err := got.Verify(w.root.Public()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := got.Verify(w.founder.Public()); !errors.Is(err, ErrRoot) && !errors.Is(err, ErrSignature) {
			t.Errorf("%s under another root: %v", name, err)
		}
	}
	c := must(ParseCertificate(w.certificate.Raw()))
	if c.ID() != w.node.ID() || c.Name() != "n4" || c.JoinSeq != 7 || !c.Ephemeral || c.Founder() || !c.Created.Equal(day) {
		t.Errorf("certificate: %+v", c)
	}
	if _, votes := c.Voter(); votes {
		t.Error("an ephemeral member votes")
	}
	if v, votes := w.founding.Voter(); !votes || v.ID != w.founder.ID() || v.JoinSeq != 0 || !w.founding.Founder() {
		t.Error("the founder does not vote, or not first")
	}
	inv := c.Invitation
	if inv.Uses != 3 || len(inv.Tags) != 2 || inv.ID() != w.application.Invitation() ||
		inv.Expired(day.Add(24*time.Hour-time.Second)) || !inv.Expired(day.Add(24*time.Hour)) {
		t.Errorf("invitation: %+v", inv)
	}
}

// The bytes of every kind are part of the protocol: a change here is a change of format.
func TestGoldenVectors(t *testing.T) {
	w := newWorld(t)
	for name, it := range w.items() {
		path := filepath.Join("testdata", name+".hex")
		if *update {
			if err := os.WriteFile(path, []byte(hex.EncodeToString(it.Raw())+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want := must(hex.DecodeString(strings.TrimSpace(string(b))))
		if !bytes.Equal(want, it.Raw()) {
			t.Errorf("%s: the bytes changed", name)
		}
		got, err := Parse(want)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := got.Verify(w.root.Public()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	names := fmt.Sprintf("node %s\nroot %s\ncluster %x\ninvitation %s\ndelegation %s\nlinked6 %s\n", w.node.ID(),
		FingerprintOf(w.root.Public()), w.cluster.ID(), w.invitation.ID(), w.delegation.ID(), w.cluster.Linked6)
	path := filepath.Join("testdata", "names.txt")
	if *update {
		if err := os.WriteFile(path, []byte(names), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if b := must(os.ReadFile(path)); string(b) != names {
		t.Errorf("derived names changed:\n%s", names)
	}
}

func TestAnyFlippedBitIsNoticed(t *testing.T) {
	w := newWorld(t)
	for name, it := range w.items() {
		rapid.Check(t, func(t *rapid.T) {
			b := bytes.Clone(it.Raw())
			at := rapid.IntRange(0, 8*len(b)-1).Draw(t, "bit")
			b[at/8] ^= 1 << (at % 8)
			got, err := Parse(b)
			if err == nil {
				err = got.Verify(w.root.Public())
			}
			if err == nil {
				t.Fatalf("%s: bit %d was flipped and nobody noticed", name, at)
			}
		})
	}
}

func TestUnknownFieldsStayUnderTheSignature(t *testing.T) {
	w := newWorld(t)
	keys := map[string][]Key{
		"cluster": {w.root}, "delegation": {w.root}, "invitation": {w.issuer}, "revocation": {w.issuer},
		"application": {w.node, w.token}, "founding": {w.root}, "certificate": {w.issuer},
		"removal": {w.issuer}, "leaving": {w.node},
	}
	for name, it := range w.items() {
		rapid.Check(t, func(t *rapid.T) {
			raw := it.Raw()
			body := raw[itemHeader : len(raw)-it.Kind().signatures()*ed25519.SignatureSize]
			value := rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "value")
			body = tlv.Append(bytes.Clone(body), rapid.Uint16Range(1000, 65535).Draw(t, "tag"), value)
			newer := seal(it.Kind(), body, keys[name]...)
			got, err := Parse(newer)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if !bytes.Equal(got.Raw(), newer) {
				t.Fatalf("%s: the unknown field was lost", name)
			}
			if err := got.Verify(w.root.Public()); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		})
	}
}

func TestVersionsOfItems(t *testing.T) {
	w := newWorld(t)
	for name, it := range w.items() {
		b := bytes.Clone(it.Raw())
		b[0] = byte(tlv.V(2, 0))
		var e *tlv.VersionError
		if _, err := Parse(b); !errors.As(err, &e) {
			t.Errorf("%s of another major version: %v", name, err)
		}
		b[0] = byte(tlv.V(1, 5))
		if _, err := Parse(b); err != nil {
			t.Errorf("%s of a higher minor version: %v", name, err)
		}
	}
	if _, err := Parse([]byte{byte(version), 99, 0, 0, 0, 0}); !errors.Is(err, ErrKind) {
		t.Errorf("unknown kind: %v", err)
	}
}

func TestCertificatesThatMustNotVerify(t *testing.T) {
	w := newWorld(t)
	root := w.root.Public()
	by := Issuer{Key: w.issuer, Delegation: w.delegation}
	stranger := fixedKey(t, 9)
	fp := FingerprintOf(root)
	other := must(by.Invite(stranger.Public(), Terms{NotAfter: day, Uses: 1}))
	forged := must(Delegate(stranger, stranger.Public(), day))
	clientOf := func(i Issuer, a *Application, inv *Invitation, seq uint64) *Certificate {
		return must(i.certify(a, inv, seq, day))
	}
	voter := must(by.Invite(w.token.Public(), Terms{NotAfter: day, Uses: 1}))
	// An issuer whose delegation says nothing about its key: it signs with a key of its own.
	thief := Issuer{Key: stranger, Delegation: w.delegation}
	body := by.append(nil)
	body = tlv.Append(body, certificateApplication, w.application.Raw())
	body = tlv.Append(body, certificateInvitation, w.invitation.Raw()) // ephemeral
	body = tlv.AppendUint64(body, certificateJoinSeq, 3)
	promoted := must(ParseCertificate(seal(KindCertificate, body, w.issuer)))

	for name, c := range map[string]*Certificate{
		"invitation for another token":      clientOf(by, w.application, other, 3),
		"signed by a stranger":              clientOf(Issuer{Key: stranger}, w.application, w.invitation, 3),
		"delegated by a stranger":           clientOf(Issuer{stranger, forged}, w.application, w.invitation, 3),
		"somebody else's delegation":        clientOf(thief, w.application, w.invitation, 3),
		"join sequence of the founder":      clientOf(by, w.application, voter, 0),
		"founder's by an issuer":            clientOf(by, must(Apply(fp, w.node, w.root, "")), nil, 0),
		"founder's without the root's part": clientOf(Issuer{Key: w.root}, w.application, nil, 0),
		"founder's with a later sequence":   clientOf(Issuer{Key: w.root}, must(Apply(fp, w.node, w.root, "")), nil, 4),
		"a vote against the invitation":     promoted,
		"application for another root":      clientOf(by, must(Apply(Fingerprint{1}, w.node, w.token, "")), voter, 3),
		"invitation by the joiner itself": clientOf(by, w.application,
			must(Issuer{Key: w.node}.Invite(w.token.Public(), Terms{NotAfter: day})), 3),
	} {
		if err := c.Verify(root); err == nil {
			t.Errorf("%s: verifies", name)
		}
	}
	if err := clientOf(by, w.application, voter, 3).Verify(root); err != nil {
		t.Errorf("the good one: %v", err)
	}
	if _, err := by.Certify(w.application, nil, 0, day); err == nil {
		t.Error("an issuer made a founder")
	}
}

func TestDelegationsAreRevokedByTheRootOnly(t *testing.T) {
	w := newWorld(t)
	by := Issuer{Key: w.issuer, Delegation: w.delegation}
	if _, err := by.Revoke(KindDelegation, w.delegation.ID(), day); err == nil {
		t.Error("an issuer revoked a delegation")
	}
	r := must(Issuer{Key: w.root}.Revoke(KindDelegation, w.delegation.ID(), day))
	if err := r.Verify(w.root.Public()); err != nil {
		t.Error(err)
	}
	if _, err := by.Revoke(KindCluster, ItemID{}, day); err == nil {
		t.Error("a cluster was revoked")
	}
}

func TestPools(t *testing.T) {
	for in, bits := range map[string]int{
		"10.32.0.0/12": 26, "10.0.0.0/8": 24, "10.1.0.0/16": 26, "192.168.0.0/20": 26, "192.168.4.0/22": 28, "192.168.4.0/24": 30,
		"fd00:1::/48": 64, "fd00::/32": 48, "fd00:1::/56": 64, "fd00:1::/64": 70, "fd00:1::/112": 118, "fd00:1::/120": 126,
	} {
		p, err := NewPool(netip.MustParsePrefix(in))
		if err != nil || p.AtomBits != bits {
			t.Errorf("%s: /%d, %v; want /%d", in, p.AtomBits, err, bits)
		}
		if n := p.Atoms(); n < 16 || n > MaxAtoms {
			t.Errorf("%s: %d atoms", in, n)
		}
	}
	w := newWorld(t)
	v4 := func(s string, bits int) Pool { return Pool{netip.MustParsePrefix(s), bits} }
	for name, spec := range map[string]ClusterSpec{
		"host bits":         {Pools: []Pool{v4("10.32.0.1/12", 26)}},
		"wide IPv6 pool":    {Pools: []Pool{v4("fd00::/12", 26)}},
		"small IPv6 pool":   {Pools: []Pool{v4("fd00::/121", 126)}},
		"two families":      {Pools: []Pool{v4("10.32.0.0/12", 26), v4("fd00:1::/48", 64)}},
		"linked and native": {Pools: []Pool{v4("fd00:1::/48", 64)}, Linked6: netip.MustParsePrefix("fd00:2::/96")},
		"atom beyond pool":  {Pools: []Pool{v4("10.32.0.0/12", 11)}},
		"too many atoms":    {Pools: []Pool{v4("10.0.0.0/8", 26)}},
		"overlapping pools": {Pools: []Pool{v4("10.32.0.0/12", 26), v4("10.33.0.0/16", 26)}},
		"short linked":      {Linked6: netip.MustParsePrefix("fd00::/64")},
		"name with control": {Name: "a\x1bb"},
		"long name":         {Name: strings.Repeat("a", MaxName+1)},
	} {
		if _, err := NewCluster(w.root, spec); err == nil {
			t.Errorf("%s: made", name)
		}
	}
	c := must(NewCluster(w.root, ClusterSpec{Founder: w.founder.ID(), IPv4: true}))
	if c.Linked6.IsValid() || len(c.Pools) != 1 || c.Pools[0].Prefix != DefaultPool {
		t.Errorf("%+v", c)
	}
	if !netip.MustParsePrefix("fd00::/8").Overlaps(w.cluster.Linked6) || w.cluster.Linked6.Bits() != 96 {
		t.Errorf("linked prefix %v", w.cluster.Linked6)
	}
	six := must(NewCluster(w.root, ClusterSpec{Founder: w.founder.ID(), Pools: []Pool{v4("fd00:1::/48", 64)}}))
	if six.Linked6.IsValid() || six.Pools[0].Prefix.String() != "fd00:1::/48" {
		t.Errorf("%+v", six)
	}
	if c.ID() == w.cluster.ID() {
		t.Error("two clusters, one ID")
	}
}

func TestKeys(t *testing.T) {
	k := must(NewKey())
	again := must(ParseKey(k.Bytes()))
	if !k.Equal(again) || k.ID() != again.ID() || k.Equal(fixedKey(t, 1)) || k.Equal(Key{}) || !(Key{}).Equal(Key{}) {
		t.Error("a key is not what it was")
	}
	sig := k.Sign("one", []byte("message"))
	if !Verify(k.Public(), "one", []byte("message"), sig) || Verify(k.Public(), "two", []byte("message"), sig) ||
		Verify(nil, "one", []byte("message"), sig) || Verify(k.Public(), "one", []byte("message"), nil) {
		t.Error("signatures")
	}
	if _, err := ParseKey(nil); err == nil {
		t.Error("a key of nothing")
	}
}

func TestKeysDoNotLeak(t *testing.T) {
	k := fixedKey(t, 0x5a)
	hidden := struct {
		k Key
		K *Key
	}{k, &k}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", k, "struct", hidden)
	out := fmt.Sprintf("%v %+v %#v %s %x %d %v %+v %#v", k, k, k, k, k, k, hidden, hidden, hidden) + log.String()
	for _, secret := range []string{"5a5a5a", "90 90 90", "5a, 0x5a", "ZZZ"} {
		if strings.Contains(out, secret) {
			t.Errorf("%q is in %s", secret, out)
		}
	}
}

func TestCompareKeepsTheOlder(t *testing.T) {
	w := newWorld(t)
	by := Issuer{Key: w.issuer, Delegation: w.delegation}
	early, late := must(by.Certify(w.application, w.invitation, 3, day)), must(by.Certify(w.application, w.invitation, 4, day))
	if early.Compare(late) >= 0 || late.Compare(early) <= 0 || early.Compare(early) != 0 {
		t.Error("order")
	}
}

func BenchmarkVerifyCertificate(b *testing.B) {
	w := newWorld(b)
	b.ReportMetric(float64(len(w.certificate.Raw())), "bytes")
	for b.Loop() {
		if err := w.certificate.Verify(w.root.Public()); err != nil {
			b.Fatal(err)
		}
	}
}
