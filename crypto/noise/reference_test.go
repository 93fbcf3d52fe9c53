package noise

import (
	"crypto/ecdh"
	"crypto/hmac"
	"encoding/binary"
	stdhash "hash"
	"testing"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
)

// reference is the Noise specification written down a second time, line by line and without a library, so that the
// handshake is checked against more than itself.
type reference struct {
	t            *testing.T
	h, ck, k     [32]byte
	n            uint64
	s, e         *ecdh.PrivateKey
	rs, re       []byte
	psk          [32]byte
	isInitiator  bool
	handshakeKey bool
}

func newBLAKE2s() stdhash.Hash {
	h, _ := blake2s.New256(nil)
	return h
}

func startReference(t *testing.T, initiator bool, s *ecdh.PrivateKey, responder, prologue []byte) *reference {
	t.Helper()
	r := &reference{t: t, s: s, isInitiator: initiator}
	const name = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s" // 37 bytes: longer than a hash, so hashed
	r.h = blake2s.Sum256([]byte(name))
	r.ck = r.h
	r.mixHash(prologue)
	r.mixHash(responder) // <- s
	if initiator {
		r.rs = responder
	}
	return r
}

func (r *reference) mixHash(b []byte) { r.h = blake2s.Sum256(append(r.h[:], b...)) }

func (r *reference) hkdf(in []byte, n int) (out [3][32]byte) {
	sum := func(key []byte, b ...byte) (o [32]byte) {
		m := hmac.New(newBLAKE2s, key)
		m.Write(b)
		return [32]byte(m.Sum(nil))
	}
	temp := sum(r.ck[:], in...)
	out[0] = sum(temp[:], 1)
	out[1] = sum(temp[:], append(out[0][:], 2)...)
	if n == 3 {
		out[2] = sum(temp[:], append(out[1][:], 3)...)
	}
	return out
}

func (r *reference) mixKey(b []byte) {
	o := r.hkdf(b, 2)
	r.ck, r.k, r.n, r.handshakeKey = o[0], o[1], 0, true
}

func (r *reference) mixKeyAndHash(b []byte) {
	o := r.hkdf(b, 3)
	r.ck, r.k, r.n = o[0], o[2], 0
	r.mixHash(o[1][:])
}

func (r *reference) nonce() []byte {
	n := make([]byte, 12)
	binary.LittleEndian.PutUint64(n[4:], r.n)
	r.n++
	return n
}

func (r *reference) encrypt(b []byte) []byte {
	a, _ := chacha20poly1305.New(r.k[:])
	c := a.Seal(nil, r.nonce(), b, r.h[:])
	r.mixHash(c)
	return c
}

func (r *reference) decrypt(c []byte) []byte {
	a, _ := chacha20poly1305.New(r.k[:])
	b, err := a.Open(nil, r.nonce(), c, r.h[:])
	if err != nil {
		r.t.Fatalf("reference cannot open: %v", err)
	}
	r.mixHash(c)
	return b
}

func (r *reference) dh(private *ecdh.PrivateKey, public []byte) {
	p, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		r.t.Fatal(err)
	}
	shared, err := private.ECDH(p)
	if err != nil {
		r.t.Fatal(err)
	}
	r.mixKey(shared)
}

// writeE and readE are the token e under a psk modifier.
func (r *reference) writeE() []byte {
	pub := r.e.PublicKey().Bytes()
	r.mixHash(pub)
	r.mixKey(pub)
	return pub
}

func (r *reference) readE(pub []byte) {
	r.re = append([]byte(nil), pub...)
	r.mixHash(pub)
	r.mixKey(pub)
}

// message1 is e, es, s, ss.
func (r *reference) writeMessage1(payload []byte) []byte {
	out := append([]byte(nil), r.writeE()...)
	r.dh(r.e, r.rs)
	out = append(out, r.encrypt(r.s.PublicKey().Bytes())...)
	r.dh(r.s, r.rs)
	return append(out, r.encrypt(payload)...)
}

func (r *reference) readMessage1(b []byte) []byte {
	r.readE(b[:32])
	r.dh(r.s, r.re)
	r.rs = r.decrypt(b[32:80])
	r.dh(r.s, r.rs)
	return r.decrypt(b[80:])
}

// message2 is e, ee, se, psk.
func (r *reference) writeMessage2(payload []byte) []byte {
	out := append([]byte(nil), r.writeE()...)
	r.dh(r.e, r.re)
	r.dh(r.e, r.rs)
	r.mixKeyAndHash(r.psk[:])
	return append(out, r.encrypt(payload)...)
}

func (r *reference) readMessage2(b []byte) []byte {
	r.readE(b[:32])
	r.dh(r.e, r.re)
	r.dh(r.s, r.re)
	r.mixKeyAndHash(r.psk[:])
	return r.decrypt(b[32:])
}

// split yields the keys as this end uses them.
func (r *reference) split() Keys {
	o := r.hkdf(nil, 2)
	if r.isInitiator {
		return Keys{Send: o[0], Receive: o[1]}
	}
	return Keys{Send: o[1], Receive: o[0]}
}
