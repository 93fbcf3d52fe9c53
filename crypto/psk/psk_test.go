package psk

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"testing"

	"weft/mesh/peer"
)

func secret(t testing.TB, n byte) Secret {
	t.Helper()
	s, err := Parse(bytes.Repeat([]byte{n}, Size))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What is derived is part of the protocol. The values were computed by another implementation of HKDF.
func TestGolden(t *testing.T) {
	s := secret(t, 0x5a)
	id := s.ID()
	for want, got := range map[string][]byte{
		"9a46259704f60e92": id[:],
		"75a762dfe210bf8f4f700a1649f513c50508bb161d0280b3e1d64de284622eb7": derived(s, Sleeve),
		"840d7d61bde3b7d32a59d7f5685c3aadce8f7d99a910deb863e9ccaf6eb2c76f": derived(s, WireGuard),
	} {
		if hex.EncodeToString(got) != want {
			t.Errorf("%x, want %s", got, want)
		}
	}
}

func derived(s Secret, p Purpose) []byte { k := s.Derive(p); return k[:] }

func TestBothEndsOfASessionGetTheSameSecret(t *testing.T) {
	a, b := peer.ID{1}, peer.ID{2}
	one, other := session(t)
	sa, err := FromSession(one.ExportKeyingMaterial, a, b)
	if err != nil {
		t.Fatal(err)
	}
	sb, err := FromSession(other.ExportKeyingMaterial, b, a)
	if err != nil {
		t.Fatal(err)
	}
	if !sa.Equal(sb) || sa.ID() != sb.ID() {
		t.Error("the ends differ")
	}
	if sc, _ := FromSession(one.ExportKeyingMaterial, a, peer.ID{3}); sc.Equal(sa) {
		t.Error("another pair has the same secret")
	}
	next, _ := session(t)
	if sn, _ := FromSession(next.ExportKeyingMaterial, a, b); sn.Equal(sa) {
		t.Error("another session has the same secret")
	}
	if _, err := FromSession(one.ExportKeyingMaterial, a, a); err == nil {
		t.Error("a pair of one")
	}
	broken := func(string, []byte, int) ([]byte, error) { return nil, errors.New("no") }
	if _, err := FromSession(broken, a, b); err == nil {
		t.Error("an exporter that fails")
	}
}

// session is both ends of a finished TLS 1.3 handshake.
func session(t *testing.T) (client, server tls.ConnectionState) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	s := tls.Server(b, &tls.Config{
		Certificates:           []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		SessionTicketsDisabled: true,
	})
	c := tls.Client(a, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	done := make(chan error, 1)
	go func() { done <- s.Handshake() }()
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return c.ConnectionState(), s.ConnectionState()
}

func TestPurposesDiffer(t *testing.T) {
	s := secret(t, 1)
	if s.Derive(Sleeve) == s.Derive(WireGuard) || bytes.Equal(derived(s, Sleeve), s.Bytes()) {
		t.Error("one key for two purposes")
	}
	if (Secret{}).Derive(WireGuard) != [Size]byte{} || (Secret{}).ID() != (ID{}) || (Secret{}).Bytes() != nil {
		t.Error("the zero secret is something")
	}
	if _, err := Parse(make([]byte, 31)); err == nil {
		t.Error("a short secret")
	}
}

func TestPairKeepsTwo(t *testing.T) {
	var p Pair
	if !p.Current().IsZero() || len(p.List()) != 0 {
		t.Error("a new pair has secrets")
	}
	p.Rotate(secret(t, 1))
	p.Rotate(secret(t, 2))
	p.Rotate(secret(t, 2)) // the same agreement again
	p.Rotate(Secret{})
	if !p.Current().Equal(secret(t, 2)) || !p.Previous().Equal(secret(t, 1)) || len(p.List()) != 2 {
		t.Errorf("%v", p.List())
	}
	if s, ok := p.Find(secret(t, 1).ID()); !ok || !s.Equal(secret(t, 1)) {
		t.Error("the previous one is not found")
	}
	p.Rotate(secret(t, 3))
	if _, ok := p.Find(secret(t, 1).ID()); ok {
		t.Error("the third one is still there")
	}
	p.Forget()
	if len(p.List()) != 1 || !p.Current().Equal(secret(t, 3)) {
		t.Error("forget")
	}
}

func TestSecretsDoNotLeak(t *testing.T) {
	s := secret(t, 0x5a)
	hidden := struct {
		s Secret
		S *Secret
		p Pair
	}{s: s, S: &s}
	hidden.p.Rotate(s)
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", s, "pair", hidden)
	out := fmt.Sprintf("%v %+v %#v %s %x %d %q %v %+v %#v", s, s, s, s, s, s, s, hidden, hidden, hidden) + log.String()
	if b, err := json.Marshal(s); err == nil {
		t.Errorf("JSON %s", b)
	}
	for _, secret := range []string{"5a5a", "90 90", "90,90", "0x5a", "ZZZ", "Wlpa"} {
		if strings.Contains(out, secret) {
			t.Errorf("%q is in %s", secret, out)
		}
	}
}
