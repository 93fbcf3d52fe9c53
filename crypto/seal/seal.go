// Package seal encrypts and authenticates datagrams under a key that counts: each datagram has a 64-bit counter, which
// is its nonce and travels in clear beside it. It makes keys for lanes out of a session's keys. Where keys come from
// (crypto/noise), how counters are written down, and which were seen before (crypto/replay) is left to others.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/cpu"
)

// Sizes in bytes.
const (
	KeySize  = 32
	Overhead = 16 // the tag
)

// MaxCounter is the highest counter that may be used. The distance to the end of the range is there so that no
// arithmetic on accepted counters can wrap.
const MaxCounter = math.MaxUint64 - 1<<16

// Errors that callers tell apart.
var (
	ErrExhausted = errors.New("every counter of the key was used")
	ErrOpen      = errors.New("datagram does not authenticate")
)

// Suite is an AEAD, as numbered on the wire. Append only.
type Suite uint8

// The suites.
const (
	ChaCha20Poly1305 Suite = 1
	AES256GCM        Suite = 2
)

// String is the name that status prints.
func (s Suite) String() string {
	switch s {
	case ChaCha20Poly1305:
		return "chacha20-poly1305"
	case AES256GCM:
		return "aes-256-gcm"
	}
	return fmt.Sprintf("cipher %d", uint8(s))
}

// Supported lists the suites that this machine computes in good time and without secrets in its cache footprint, best
// first. Without AES and carry-less multiplication in hardware, GCM is neither.
func Supported() []Suite {
	if cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ && cpu.X86.HasSSE41 && cpu.X86.HasSSSE3 ||
		cpu.ARM64.HasAES && cpu.ARM64.HasPMULL {
		return []Suite{AES256GCM, ChaCha20Poly1305}
	}
	return []Suite{ChaCha20Poly1305}
}

// LaneKey derives the key of one lane from a session's key of one direction. A lane has counters of its own, hence
// needs a key of its own.
func LaneKey(session *[KeySize]byte, lane uint8) [KeySize]byte {
	k, err := hkdf.Expand(sha256.New, session[:], "weft lane "+string([]byte{lane}), KeySize)
	if err != nil {
		panic(err) // only for lengths that a constant cannot have
	}
	return [KeySize]byte(k)
}

func newAEAD(s Suite, key *[KeySize]byte) (cipher.AEAD, error) {
	switch s {
	case ChaCha20Poly1305:
		return chacha20poly1305.New(key[:])
	case AES256GCM:
		b, err := aes.NewCipher(key[:])
		if err != nil {
			return nil, err
		}
		return cipher.NewGCM(b)
	}
	return nil, fmt.Errorf("open %v: unknown cipher", s)
}

// nonce is four zero bytes and the counter, big endian. It lives in Sealer and Opener because an array on the stack
// would escape through the cipher.AEAD interface: an allocation per datagram.
type nonce [12]byte

func (n *nonce) set(counter uint64) []byte {
	binary.BigEndian.PutUint64(n[4:], counter)
	return n[:]
}

// Sealer seals with ascending counters, each used once. It is not safe for concurrent use.
type Sealer struct {
	aead  cipher.AEAD
	next  uint64
	nonce nonce
}

// NewSealer starts at counter 0: a key must never get a second Sealer.
func NewSealer(s Suite, key *[KeySize]byte) (*Sealer, error) {
	a, err := newAEAD(s, key)
	if err != nil {
		return nil, err
	}
	return &Sealer{aead: a}, nil
}

// Next is the counter that the next Seal uses.
func (s *Sealer) Next() uint64 { return s.next }

// Seal appends the sealed plaintext to dst and authenticates ad with it, under the counter that Next told. It does not
// allocate when dst has room for len(plaintext)+Overhead more bytes, which must overlap plaintext exactly or not at all.
func (s *Sealer) Seal(dst, plaintext, ad []byte) ([]byte, error) {
	if s.next > MaxCounter {
		return dst, ErrExhausted
	}
	dst = s.aead.Seal(dst, s.nonce.set(s.next), plaintext, ad)
	s.next++
	return dst, nil
}

// Opener is the other end of a Sealer. It is not safe for concurrent use.
type Opener struct {
	aead  cipher.AEAD
	nonce nonce
}

// NewOpener opens what a Sealer with this suite and key sealed.
func NewOpener(s Suite, key *[KeySize]byte) (*Opener, error) {
	a, err := newAEAD(s, key)
	if err != nil {
		return nil, err
	}
	return &Opener{aead: a}, nil
}

// Open appends the plaintext to dst, or returns ErrOpen. It does not allocate when dst has the room, which must overlap
// sealed exactly (sealed[:0]) or not at all. After an error the room behind dst holds nothing of use.
func (o *Opener) Open(dst []byte, counter uint64, sealed, ad []byte) ([]byte, error) {
	if counter > MaxCounter {
		return dst, ErrOpen
	}
	out, err := o.aead.Open(dst, o.nonce.set(counter), sealed, ad)
	if err != nil {
		return dst, ErrOpen
	}
	return out, nil
}
