package noise

import (
	"crypto/rand"
	"crypto/subtle"
	"net/netip"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
)

// Labels keep the uses of one hash apart.
const (
	labelPrologue = "weft sleeve v1"
	labelMAC1     = "weft mac1"
	labelCookie   = "weft cookie"
)

// cookieLife is how long a cookie is worth something, and how long a secret makes cookies.
const cookieLife = 2 * time.Minute

func hash(label string, b []byte) [32]byte {
	return blake2s.Sum256(append([]byte(label), b...))
}

func mac(key, b []byte) (sum [macSize]byte) {
	h, err := blake2s.New128(key)
	if err != nil {
		panic(err) // only for keys longer than 32 bytes
	}
	h.Write(b)
	h.Sum(sum[:0])
	return sum
}

// appendMACs ends a message to the owner of remote: mac1, and zeros for mac2.
func appendMACs(msg []byte, remote [KeySize]byte) []byte {
	key := hash(labelMAC1, remote[:])
	sum := mac(key[:], msg)
	return append(append(msg, sum[:]...), make([]byte, macSize)...)
}

// split is a message without macs, mac1, the message with mac1, and mac2. The message must have a Type with macs.
func split(msg []byte) (body, mac1, signed, mac2 []byte) {
	n := len(msg)
	return msg[:n-macs], msg[n-macs : n-macSize], msg[:n-macSize], msg[n-macSize:]
}

// Check reports whether msg is an initiation or response from someone who knows the public part of k. It costs one
// hash and comes before everything else.
func (k *Key) Check(msg []byte) error {
	if t := Type(msg); t != TypeInitiation && t != TypeResponse {
		return ErrMessage
	}
	body, mac1, _, _ := split(msg)
	if want := mac(k.mac1[:], body); subtle.ConstantTimeCompare(want[:], mac1) != 1 {
		return ErrMAC1
	}
	return nil
}

// Bare reports whether msg proves nothing about its sender's address. It must have a Type with macs.
func Bare(msg []byte) bool {
	_, _, _, mac2 := split(msg)
	return [macSize]byte(mac2) == [macSize]byte{}
}

// Cookies is the responder's side of address proof under load. The zero value is ready. It is not safe for concurrent
// use.
type Cookies struct {
	secrets [2][32]byte // newest first
	made    [2]time.Time
}

func (c *Cookies) rotate(now time.Time) {
	if c.made[0].IsZero() || now.Sub(c.made[0]) >= cookieLife {
		c.secrets[1], c.made[1] = c.secrets[0], c.made[0]
		rand.Read(c.secrets[0][:])
		c.made[0] = now
	}
}

func cookie(secret *[32]byte, src netip.AddrPort) [macSize]byte {
	b, _ := src.MarshalBinary() // fails never
	return mac(secret[:], b)
}

// Valid reports whether mac2 of a checked message proves that its sender receives at src.
func (c *Cookies) Valid(msg []byte, src netip.AddrPort, now time.Time) bool {
	_, _, signed, mac2 := split(msg)
	for i := range c.secrets {
		if c.made[i].IsZero() || now.Sub(c.made[i]) >= 2*cookieLife {
			continue
		}
		ck := cookie(&c.secrets[i], src)
		if want := mac(ck[:], signed); subtle.ConstantTimeCompare(want[:], mac2) == 1 {
			return true
		}
	}
	return false
}

// Reply makes the cookie reply to a checked initiation from src. It is smaller than the initiation and kept nowhere.
func (c *Cookies) Reply(k *Key, msg []byte, src netip.AddrPort, now time.Time) []byte {
	c.rotate(now)
	_, mac1, _, _ := split(msg)
	out := append(make([]byte, 0, CookieSize), TypeCookie)
	out = append(out, msg[1:initiationHeader]...)
	var nonce [chacha20poly1305.NonceSizeX]byte
	rand.Read(nonce[:])
	out = append(out, nonce[:]...)
	ck := cookie(&c.secrets[0], src)
	return cookieAEAD(k.public).Seal(out, nonce[:], ck[:], mac1)
}

func cookieAEAD(responder [KeySize]byte) interface {
	Seal(dst, nonce, plaintext, ad []byte) []byte
	Open(dst, nonce, ciphertext, ad []byte) ([]byte, error)
} {
	key := hash(labelCookie, responder[:])
	a, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		panic(err) // only for another key size
	}
	return a
}

// Jar is the initiator's side: the cookie that one responder gave. The zero value is empty. It is not safe for
// concurrent use.
type Jar struct {
	cookie [macSize]byte
	got    time.Time
}

// Put reads a cookie reply to the initiation sent to the owner of remote.
func (j *Jar) Put(reply, initiation []byte, remote [KeySize]byte, now time.Time) error {
	if Type(reply) != TypeCookie || Type(initiation) != TypeInitiation {
		return ErrMessage
	}
	_, mac1, _, _ := split(initiation)
	const nonceEnd = initiationHeader + chacha20poly1305.NonceSizeX
	b, err := cookieAEAD(remote).Open(nil, reply[initiationHeader:nonceEnd], reply[nonceEnd:], mac1)
	if err != nil {
		return ErrAuth
	}
	j.cookie, j.got = [macSize]byte(b), now
	return nil
}

// Sign writes mac2 on an initiation if there is a fresh cookie.
func (j *Jar) Sign(initiation []byte, now time.Time) {
	if j.got.IsZero() || now.Sub(j.got) >= cookieLife {
		return
	}
	_, _, signed, mac2 := split(initiation)
	sum := mac(j.cookie[:], signed)
	copy(mac2, sum[:])
}
