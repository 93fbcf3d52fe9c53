package identity

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"

	"weft/mesh/peer"
)

// KeySize is the length of Key.Bytes.
const KeySize = ed25519.SeedSize

// Key is an Ed25519 private key: a node's identity, a token's one-off key or the root. The zero Key is no key.
//
// The secret stands behind a pointer, so that printing a struct that holds a Key shows an address at worst.
type Key struct{ private *[ed25519.PrivateKeySize]byte }

// NewKey makes a key from the system's randomness.
func NewKey() (Key, error) {
	var seed [KeySize]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return Key{}, fmt.Errorf("make key: %w", err)
	}
	return ParseKey(seed[:])
}

// ParseKey reads what Bytes wrote.
func ParseKey(b []byte) (Key, error) {
	if len(b) != KeySize {
		return Key{}, fmt.Errorf("parse key: %d bytes, want %d", len(b), KeySize)
	}
	var k [ed25519.PrivateKeySize]byte
	copy(k[:], ed25519.NewKeyFromSeed(b))
	return Key{private: &k}, nil
}

// IsZero reports whether k is no key.
func (k Key) IsZero() bool { return k.private == nil }

// Bytes is the secret, for a file that only root can read.
func (k Key) Bytes() []byte {
	if k.IsZero() {
		return nil
	}
	return ed25519.PrivateKey(k.private[:]).Seed()
}

// Public is the public half; nil of the zero Key.
func (k Key) Public() ed25519.PublicKey {
	if k.IsZero() {
		return nil
	}
	return ed25519.PrivateKey(k.private[:]).Public().(ed25519.PublicKey)
}

// ID is the NodeID of the key.
func (k Key) ID() peer.ID { return IDOf(k.Public()) }

// Equal compares in constant time.
func (k Key) Equal(other Key) bool {
	if k.IsZero() || other.IsZero() {
		return k.IsZero() && other.IsZero()
	}
	return ed25519.PrivateKey(k.private[:]).Equal(ed25519.PrivateKey(other.private[:]))
}

// Sign signs msg for one purpose: a signature made for one domain is worthless in another.
func (k Key) Sign(domain string, msg []byte) []byte {
	return ed25519.Sign(ed25519.PrivateKey(k.private[:]), inDomain(domain, msg))
}

// Signer is the key for crypto/tls and crypto/x509. TLS signs under contexts of its own, which no domain of Sign equals.
func (k Key) Signer() crypto.Signer { return ed25519.PrivateKey(k.private[:]) }

// String names the key without its secret.
func (k Key) String() string {
	if k.IsZero() {
		return "key(none)"
	}
	return "key(" + k.ID().Short() + ")"
}

// Format is String under every verb.
func (k Key) Format(f fmt.State, _ rune) { fmt.Fprint(f, k.String()) }

// LogValue is String.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText refuses: a key is written with Bytes, on purpose.
func (k Key) MarshalText() ([]byte, error) { return nil, errors.New("a private key has no text form") }

// Verify checks what Sign made. A key of the wrong length verifies nothing.
func Verify(pub ed25519.PublicKey, domain string, msg, sig []byte) bool {
	return len(pub) == ed25519.PublicKeySize && len(sig) == ed25519.SignatureSize &&
		ed25519.Verify(pub, inDomain(domain, msg), sig)
}

// IDOf is the NodeID of a public key: the first 128 bits of its hash.
func IDOf(pub ed25519.PublicKey) peer.ID {
	h := digest("weft node id", pub)
	return peer.ID(h[:peer.IDSize])
}

// FingerprintSize is the length of a Fingerprint.
const FingerprintSize = 16

// Fingerprint names a root key in a token.
type Fingerprint [FingerprintSize]byte

// FingerprintOf is the first 128 bits of the hash of a root's public key.
func FingerprintOf(root ed25519.PublicKey) Fingerprint {
	h := digest("weft root", root)
	return Fingerprint(h[:FingerprintSize])
}

// String is 32 hexadecimal digits.
func (f Fingerprint) String() string { return fmt.Sprintf("%x", f[:]) }

func inDomain(domain string, msg []byte) []byte {
	b := make([]byte, 0, len(domain)+1+len(msg))
	b = append(b, domain...)
	b = append(b, 0)
	return append(b, msg...)
}

func digest(domain string, msg []byte) [sha256.Size]byte { return sha256.Sum256(inDomain(domain, msg)) }
