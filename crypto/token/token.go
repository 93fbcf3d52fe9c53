// Package token is the text that lets a machine join a cluster: "weft1" and lower-case base32.
//
//	 0         1                  17           33      34                              n-4     n
//	+---------+------------------+------------+-------+-------------------------------+-------+
//	| version | root fingerprint | token seed | seeds | 1 to 3 seeds                  | check |
//	+---------+------------------+------------+-------+-------------------------------+-------+
//	 1 byte    16                 16           1       15 (IPv4) or 27 (IPv6) each     4
//
//	seed: address size (4 or 16), address, port (uint16), first 8 bytes of the NodeID
//
// The check is the same in all versions, so that a typing error is told from a token of a newer weft. A token is a
// secret until it has expired or was used up; what is public about it is identity.Invitation.
//
// The package reads and writes tokens. What they allow is decided by the members (package join).
package token

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"strings"

	"weft/crypto/identity"
	"weft/mesh/peer"
)

// Limits of the format.
const (
	MaxSeeds   = 3
	MaxLength  = 256 // characters
	HintSize   = 8   // bytes of a NodeID in a seed
	SecretSize = 16

	version   = 1
	checkSize = 4
)

// Pattern matches tokens, in logs and on command lines.
const Pattern = `weft1[a-z2-7]+`

var (
	shape    = regexp.MustCompile(`^` + Pattern + `$`)
	encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
)

// Token is what the text holds.
type Token struct {
	Root   identity.Fingerprint
	Seeds  []Seed // 1 to MaxSeeds
	secret *[SecretSize]byte
}

// Seed is a member that the joiner can ask.
type Seed struct {
	Endpoint netip.AddrPort
	Hint     [HintSize]byte // how its NodeID begins
}

// SeedOf names a member at an endpoint.
func SeedOf(endpoint netip.AddrPort, id peer.ID) Seed {
	return Seed{
		Endpoint: netip.AddrPortFrom(endpoint.Addr().Unmap().WithZone(""), endpoint.Port()),
		Hint:     [HintSize]byte(id[:HintSize]),
	}
}

// Is reports whether the seed may be that node.
func (s Seed) Is(id peer.ID) bool { return bytes.Equal(s.Hint[:], id[:HintSize]) }

// New makes a token with a fresh secret.
func New(root identity.Fingerprint, seeds ...Seed) (Token, error) {
	if len(seeds) == 0 || len(seeds) > MaxSeeds {
		return Token{}, fmt.Errorf("make token: %d seeds, want 1 to %d", len(seeds), MaxSeeds)
	}
	for _, s := range seeds {
		if !valid(s.Endpoint) {
			return Token{}, fmt.Errorf("make token: a seed at %v", s.Endpoint)
		}
	}
	t := Token{Root: root, Seeds: seeds, secret: new([SecretSize]byte)}
	if _, err := rand.Read(t.secret[:]); err != nil {
		return Token{}, fmt.Errorf("make token: %w", err)
	}
	return t, nil
}

// Key derives the token's one-off key.
func (t Token) Key() (identity.Key, error) {
	if t.secret == nil {
		return identity.Key{}, fmt.Errorf("derive token key: an empty token")
	}
	seed, err := hkdf.Key(sha256.New, t.secret[:], t.Root[:], "weft token key", identity.KeySize)
	if err != nil {
		return identity.Key{}, fmt.Errorf("derive token key: %w", err)
	}
	return identity.ParseKey(seed)
}

// Format is the text, with the secret. String and slog show none of it.
func (t Token) Format() string {
	if t.secret == nil {
		return ""
	}
	b := []byte{version}
	b = append(b, t.Root[:]...)
	b = append(b, t.secret[:]...)
	b = append(b, byte(len(t.Seeds)))
	for _, s := range t.Seeds {
		addr := s.Endpoint.Addr().AsSlice()
		b = append(b, byte(len(addr)))
		b = append(b, addr...)
		b = binary.BigEndian.AppendUint16(b, s.Endpoint.Port())
		b = append(b, s.Hint[:]...)
	}
	sum := check(b)
	return "weft1" + encoding.EncodeToString(append(b, sum[:]...))
}

// String names the token without its secret.
func (t Token) String() string { return "token(for root " + t.Root.String() + ")" }

// GoString is String.
func (t Token) GoString() string { return t.String() }

// LogValue is String.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// Parse reads what Format wrote; spaces around it are ignored. The error is an *Error.
func Parse(s string) (Token, error) {
	s = strings.TrimSpace(s)
	switch {
	case !strings.HasPrefix(s, "weft"):
		return Token{}, notToken("it does not begin with weft1")
	case len(s) > MaxLength:
		return Token{}, notToken(fmt.Sprintf("it has %d characters, a token has at most %d", len(s), MaxLength))
	case !shape.MatchString(s):
		if newer.MatchString(s) {
			return Token{}, ofNewer()
		}
		return Token{}, damaged("it holds characters that no token has")
	}
	text := s[len("weft1"):]
	b, err := encoding.DecodeString(text)
	if err != nil || encoding.EncodeToString(b) != text || len(b) < 1+checkSize {
		return Token{}, damaged("its length is not that of a token")
	}
	b, sum := b[:len(b)-checkSize], b[len(b)-checkSize:]
	if want := check(b); !bytes.Equal(sum, want[:]) {
		return Token{}, damaged("its check does not match")
	}
	if b[0] != version {
		return Token{}, ofNewer()
	}
	t, ok := parseBody(b[1:])
	if !ok {
		return Token{}, damaged("its fields do not fit together")
	}
	return t, nil
}

// newer are prefixes that later formats may use.
var newer = regexp.MustCompile(`^weft[2-9][0-9a-z]+$`)

func parseBody(b []byte) (Token, bool) {
	if len(b) < identity.FingerprintSize+SecretSize+1 {
		return Token{}, false
	}
	t := Token{Root: identity.Fingerprint(b[:identity.FingerprintSize])}
	b = b[identity.FingerprintSize:]
	t.secret = (*[SecretSize]byte)(bytes.Clone(b[:SecretSize]))
	count := int(b[SecretSize])
	b = b[SecretSize+1:]
	if count == 0 || count > MaxSeeds {
		return Token{}, false
	}
	for range count {
		if len(b) == 0 || b[0] != 4 && b[0] != 16 {
			return Token{}, false
		}
		n := int(b[0])
		b = b[1:]
		if len(b) < n+2+HintSize {
			return Token{}, false
		}
		addr, _ := netip.AddrFromSlice(b[:n])
		s := Seed{Endpoint: netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[n:])), Hint: [HintSize]byte(b[n+2:])}
		if !valid(s.Endpoint) {
			return Token{}, false
		}
		t.Seeds = append(t.Seeds, s)
		b = b[n+2+HintSize:]
	}
	return t, len(b) == 0
}

func valid(ap netip.AddrPort) bool {
	a := ap.Addr()
	return ap.IsValid() && ap.Port() != 0 && !a.Is4In6() && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast()
}

func check(b []byte) [checkSize]byte {
	h := sha256.New()
	h.Write([]byte("weft token check\x00"))
	h.Write(b)
	return [checkSize]byte(h.Sum(nil)[:checkSize])
}
