package weftd

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"weft/crypto/identity"
	"weft/ipam"
)

// A machine that dies at any moment of its change to a new life goes on in the old one or in the new one when it starts, and
// never in a mixture.
func TestRebirthSurvivesACrashAtAnyStep(t *testing.T) {
	type step func(s *stateDir) error
	rename := func(from, to string) step {
		return func(s *stateDir) error { return os.Rename(s.file(from), s.file(to)) }
	}
	for name, c := range map[string]struct {
		done   []step // after the new life was prepared
		reborn bool   // the point of no return was passed
	}{
		"before the point of no return": {nil, false},
		"right after it":                {nil, true},
		"with the key changed over":     {[]step{rename(fileNextIdentity, fileIdentity)}, true},
		"with the book changed over":    {[]step{rename(fileNextDB, fileDB)}, true},
		"with both changed over":        {[]step{rename(fileNextIdentity, fileIdentity), rename(fileNextDB, fileDB)}, true},
		"with the old life's files gone": {[]step{
			rename(fileNextDB, fileDB), rename(fileNextIdentity, fileIdentity),
			func(s *stateDir) error { return s.remove(fileNoise, fileRoster, fileRecords, fileSelf) },
		}, true},
		"before the last line": {[]step{
			rename(fileNextDB, fileDB), rename(fileNextIdentity, fileIdentity),
			func(s *stateDir) error {
				b, err := s.read(fileReborn)
				return errors.Join(err, s.write(fileMembership, b))
			},
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := must(openState(filepath.Join(t.TempDir(), "state")))(t)
			defer func() { _ = s.close() }()
			check := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			root, old := must(identity.NewKey())(t), must(s.keyOrNew(fileIdentity))(t)
			m := must(found(old, root, "n1", identity.ClusterSpec{}, time.Now()))(t)
			check(m.admit(s))
			for _, f := range []string{fileRoster, fileRecords, fileSelf, fileSilence, filePromises} {
				check(s.write(f, []byte("of the old life")))
			}
			_ = must(s.noiseKey())(t)
			next := must(s.keyOrNew(fileNextIdentity))(t)
			token := must(identity.NewKey())(t)
			by := identity.Issuer{Key: root}
			inv := must(by.Invite(token.Public(), identity.Terms{NotAfter: time.Now().Add(time.Hour)}))(t)
			cert := must(by.Certify(must(identity.Apply(identity.FingerprintOf(root.Public()), next, token, "n1"))(t), inv, 7, time.Now()))(t)
			m2 := &membership{cluster: m.cluster, certificate: cert, items: m.items}

			check(inheritClaims(s.file(fileDB), s.file(fileNextDB)))
			want := old.ID()
			if c.reborn {
				want = next.ID()
				check(s.write(fileReborn, m2.append(nil)))
			}
			for _, do := range c.done {
				check(do(s))
			}

			check(finishRebirth(s))
			loaded, key, err := loadMembership(s)
			check(err)
			if key.ID() != want || loaded.certificate.ID() != want {
				t.Errorf("it is %s with the certificate of %s, want %s", key.ID(), loaded.certificate.ID(), want)
			}
			b, err := s.read(fileRoster)
			if kept := err == nil && bytes.Equal(b, []byte("of the old life")); kept == c.reborn {
				t.Errorf("the old roster is there: %v", kept)
			}
			if _, err := s.read(fileReborn); !errors.Is(err, errNoState) {
				t.Error("it is not finished")
			}
			if asks := must(s.keyOrNew(fileNextIdentity))(t); !c.reborn && asks.ID() != next.ID() {
				t.Error("who asks again does so with another key, which is another use")
			}
		})
	}
}

// The pods of the old life are in the book of the new one, its starts and its host address are not.
func TestClaimsAreInherited(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "old"), filepath.Join(dir, "new")
	old := must(ipam.OpenBolt(from))(t)
	claims := map[string][]byte{}
	if err := old.Commit([]ipam.Op{
		{Table: "claim", Key: []byte{10, 32, 0, 7}, Value: append([]byte{0x10}, "\x00\x02\x00\x00\x00\x03pod\x00\x03\x00\x00\x00\x04eth0"...)},
		{Table: "claim", Key: []byte{10, 32, 0, 0}, Value: append([]byte{0x10}, "\x00\x01\x00\x00\x00\x01\x01"...)},
		{Table: "meta", Key: []byte("incarnation"), Value: []byte{0x10}},
		{Table: "grant", Key: []byte("x"), Value: []byte("y")},
	}); err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if err := inheritClaims(from, to); err != nil {
		t.Fatal(err)
	}
	book := must(ipam.OpenBolt(to))(t)
	defer book.Close()
	if err := book.Load(func(table ipam.Table, key, value []byte) error {
		if table != "meta" || string(key) != "format" {
			claims[string(table)+" "+string(key)] = bytes.Clone(value)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(claims) != 1 || !bytes.Contains(claims["claim "+string([]byte{10, 32, 0, 7})], []byte("pod")) {
		t.Errorf("%q", claims)
	}
}
