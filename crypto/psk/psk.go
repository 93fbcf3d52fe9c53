// Package psk is the secret that a pair of members shares: exported from a TLS session between them whose key exchange
// withstands a quantum computer, mixed into the keys of sleeve and WireGuard.
//
// It derives, names and rotates secrets. When to agree on a new one, and over which session, is the caller's.
package psk

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"

	"weft/mesh/peer"
)

// Sizes in bytes.
const (
	Size   = 32
	IDSize = 8
)

// ID names a secret on the wire and in logs. It is derived one way.
type ID [IDSize]byte

// String is 16 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Secret is a pair's secret. The zero Secret is none. It stands behind a pointer, so that printing a struct that holds
// one shows an address at worst; compare with Equal.
type Secret struct{ b *[Size]byte }

// Purpose separates what is derived from a secret.
type Purpose string

// The purposes.
const (
	Sleeve    Purpose = "sleeve"
	WireGuard Purpose = "wireguard"
)

// Exporter is a TLS session's exporter (RFC 8446, 7.5); circuit.Conn and tls.ConnectionState have one.
type Exporter func(label string, context []byte, n int) ([]byte, error)

const exporterLabel = "EXPORTER-weft-pair-secret"

// FromSession takes the secret of a session between two members. Both ends get the same one.
func FromSession(export Exporter, one, other peer.ID) (Secret, error) {
	if one == other {
		return Secret{}, errors.New("export pair secret: a pair of one")
	}
	if one.Compare(other) > 0 {
		one, other = other, one
	}
	b, err := export(exporterLabel, bytes.Join([][]byte{one[:], other[:]}, nil), Size)
	if err != nil {
		return Secret{}, fmt.Errorf("export pair secret: %w", err)
	}
	return Parse(b)
}

// Parse takes over what Bytes gave.
func Parse(b []byte) (Secret, error) {
	if len(b) != Size {
		return Secret{}, fmt.Errorf("parse pair secret: %d bytes, want %d", len(b), Size)
	}
	s := Secret{b: new([Size]byte)}
	copy(s.b[:], b)
	return s, nil
}

// IsZero reports whether s is none.
func (s Secret) IsZero() bool { return s.b == nil }

// Bytes is a copy of the secret, for the socket to the data plane; nil of the zero Secret.
func (s Secret) Bytes() []byte {
	if s.IsZero() {
		return nil
	}
	return bytes.Clone(s.b[:])
}

// Equal compares in constant time.
func (s Secret) Equal(other Secret) bool {
	if s.IsZero() || other.IsZero() {
		return s.IsZero() && other.IsZero()
	}
	return subtle.ConstantTimeCompare(s.b[:], other.b[:]) == 1
}

// ID names the secret; the zero ID of the zero Secret.
func (s Secret) ID() ID {
	var id ID
	if !s.IsZero() {
		copy(id[:], s.expand("id", IDSize))
	}
	return id
}

// Derive is the key for one purpose; all zero of the zero Secret, which is WireGuard's "no preshared key".
func (s Secret) Derive(p Purpose) [Size]byte {
	var key [Size]byte
	if !s.IsZero() {
		copy(key[:], s.expand("key for "+string(p), Size))
	}
	return key
}

func (s Secret) expand(info string, n int) []byte {
	b, err := hkdf.Key(sha256.New, s.b[:], nil, "weft pair secret "+info, n)
	if err != nil {
		panic(err) // only for lengths above 8,160 bytes
	}
	return b
}

// String shows the name only.
func (s Secret) String() string {
	if s.IsZero() {
		return "psk(none)"
	}
	return "psk(" + s.ID().String() + ")"
}

// Format is String under every verb.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// LogValue is String.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText refuses: a secret is written with Bytes, on purpose.
func (s Secret) MarshalText() ([]byte, error) {
	return nil, errors.New("a pair secret has no text form")
}
