package noise

import (
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"

	flynn "github.com/flynn/noise"
)

// Sizes in bytes, and the values of a message's first byte.
const (
	KeySize = 32

	TypeInitiation = 0x10
	TypeResponse   = 0x11
	TypeCookie     = 0x12

	MinInitiation = 320
	MaxMessage    = 1200 // must fit every path unfragmented
	CookieSize    = 60

	// MaxIndex is the largest index: it has three bytes.
	MaxIndex = 1<<24 - 1

	initiationHeader = 4
	responseHeader   = 5
	macSize          = 16
	macs             = 2 * macSize
	tagSize          = 16

	overheadInitiation = initiationHeader + KeySize + (KeySize + tagSize) + tagSize + macs // all but the offer
	minResponse        = responseHeader + KeySize + tagSize + macs
)

// Errors that callers count apart.
var (
	ErrMessage = errors.New("not a handshake message")       // shape
	ErrMAC1    = errors.New("handshake message without mac") // the sender does not know whom it speaks to
	ErrAuth    = errors.New("handshake does not authenticate")
	ErrPSK     = errors.New("no pair secret in common")
)

// Key is a static key pair. It is immutable.
type Key struct {
	private *ecdh.PrivateKey
	public  [KeySize]byte
	mac1    [KeySize]byte // key of mac1 on messages to us
}

// NewKey makes a Key of an X25519 private key.
func NewKey(private [KeySize]byte) (*Key, error) {
	p, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		return nil, fmt.Errorf("read noise key: %w", err)
	}
	k := &Key{private: p, public: [KeySize]byte(p.PublicKey().Bytes())}
	k.mac1 = hash(labelMAC1, k.public[:])
	return k, nil
}

// GenerateKey makes a new key pair and returns the private part for NewKey.
func GenerateKey() (private, public [KeySize]byte, err error) {
	p, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return private, public, fmt.Errorf("make noise key: %w", err)
	}
	return [KeySize]byte(p.Bytes()), [KeySize]byte(p.PublicKey().Bytes()), nil
}

// Public is the public part.
func (k *Key) Public() [KeySize]byte { return k.public }

// Local is this end of every handshake.
type Local struct {
	Key     *Key
	Cluster [32]byte

	random io.Reader // tests only; nil is the system's
}

// Keys are what a handshake yields: one key for each direction.
type Keys struct{ Send, Receive [KeySize]byte }

// Pending is the initiator's half-done handshake. It may see any number of forged responses before the true one.
type Pending struct {
	state *flynn.HandshakeState
	local *Key
	offer Offer
}

// Initiate starts a handshake with the owner of the static key remote and returns message 1. The index is chosen by the
// caller and comes back on the response.
func Initiate(l Local, remote [KeySize]byte, index uint32, o Offer) (*Pending, []byte, error) {
	if len(o.PSKs) == 0 {
		return nil, nil, ErrPSK
	}
	if len(o.PSKs) > MaxPSKs || len(o.Ciphers) == 0 || len(o.Ciphers) > MaxCiphers || index > MaxIndex {
		return nil, nil, fmt.Errorf("make handshake: %d secrets, %d ciphers, index %d", len(o.PSKs), len(o.Ciphers), index)
	}
	msg := putIndex([]byte{TypeInitiation}, index)
	hs, err := newState(l, remote[:], msg)
	if err != nil {
		return nil, nil, err
	}
	payload := pad(o.append(nil), MinInitiation-overheadInitiation)
	msg, _, _, err = hs.WriteMessage(msg, payload)
	if err != nil {
		return nil, nil, fmt.Errorf("make handshake: %w", err)
	}
	o.Ciphers, o.PSKs = slices.Clone(o.Ciphers), slices.Clone(o.PSKs)
	return &Pending{state: hs, local: l.Key, offer: o}, appendMACs(msg, remote), nil
}

// Decide is asked by Respond about an initiation that proved to come from the owner of remote: it returns the answer
// and the pair secret that the answer names, or an error for silence.
type Decide func(remote [KeySize]byte, o Offer) (Answer, [32]byte, error)

// Respond reads message 1, whose mac1 the caller has checked (Key.Check), and makes message 2. The keys may be used for
// receiving at once, but for sending only after something was received with them: until then message 1 may be a replay.
func Respond(l Local, msg []byte, decide Decide) (response []byte, keys Keys, err error) {
	if Type(msg) != TypeInitiation {
		return nil, Keys{}, ErrMessage
	}
	hs, err := newState(l, nil, msg[:initiationHeader])
	if err != nil {
		return nil, Keys{}, err
	}
	payload, _, _, err := hs.ReadMessage(nil, msg[initiationHeader:len(msg)-macs])
	if err != nil {
		return nil, Keys{}, ErrAuth
	}
	o, err := parseOffer(payload)
	if err != nil {
		return nil, Keys{}, err
	}
	remote := [KeySize]byte(hs.PeerStatic())
	a, secret, err := decide(remote, o)
	if err != nil {
		return nil, Keys{}, err
	}
	slot := slices.Index(o.PSKs, a.PSK)
	if slot < 0 || !slices.Contains(o.Ciphers, a.Cipher) || a.Index > MaxIndex {
		return nil, Keys{}, errors.New("answer handshake: not what was offered")
	}
	if err := hs.SetPresharedKey(secret[:]); err != nil {
		return nil, Keys{}, fmt.Errorf("answer handshake: %w", err)
	}
	out := append([]byte{TypeResponse}, msg[1:initiationHeader]...)
	out, receive, send, err := hs.WriteMessage(append(out, byte(slot)), a.append(nil))
	if err != nil {
		return nil, Keys{}, fmt.Errorf("answer handshake: %w", err)
	}
	if out = appendMACs(out, remote); len(out) > len(msg) {
		return nil, Keys{}, errors.New("answer handshake: larger than the question")
	}
	return out, Keys{Send: send.UnsafeKey(), Receive: receive.UnsafeKey()}, nil
}

// Finish reads message 2, whose mac1 the caller has checked. It asks for the secret by id when it is needed, so that
// one taken away in the meantime is not used. After an error the handshake may go on waiting, unharmed by the forgery.
func (p *Pending) Finish(msg []byte, secret func(ID) ([32]byte, bool)) (Answer, Keys, error) {
	if Type(msg) != TypeResponse {
		return Answer{}, Keys{}, ErrMessage
	}
	slot := int(msg[initiationHeader])
	if slot >= len(p.offer.PSKs) {
		return Answer{}, Keys{}, ErrMessage
	}
	psk, ok := secret(p.offer.PSKs[slot])
	if !ok {
		return Answer{}, Keys{}, ErrPSK
	}
	if err := p.state.SetPresharedKey(psk[:]); err != nil {
		return Answer{}, Keys{}, fmt.Errorf("finish handshake: %w", err)
	}
	payload, send, receive, err := p.state.ReadMessage(nil, msg[responseHeader:len(msg)-macs])
	if err != nil {
		return Answer{}, Keys{}, ErrAuth
	}
	a, err := parseAnswer(payload)
	if err != nil {
		return Answer{}, Keys{}, err
	}
	if a.PSK != p.offer.PSKs[slot] || !slices.Contains(p.offer.Ciphers, a.Cipher) {
		return Answer{}, Keys{}, fmt.Errorf("%w: the answer is none of those offered", ErrAuth)
	}
	return a, Keys{Send: send.UnsafeKey(), Receive: receive.UnsafeKey()}, nil
}

// Type is the first byte of msg if its length is possible for it, else 0.
func Type(msg []byte) byte {
	if len(msg) == 0 || len(msg) > MaxMessage {
		return 0
	}
	switch t := msg[0]; {
	case t == TypeInitiation && len(msg) >= MinInitiation,
		t == TypeResponse && len(msg) >= minResponse,
		t == TypeCookie && len(msg) == CookieSize:
		return t
	}
	return 0
}

// Index is the initiator's index on a message that has a Type.
func Index(msg []byte) uint32 { return uint32(msg[1])<<16 | uint32(msg[2])<<8 | uint32(msg[3]) }

func putIndex(dst []byte, index uint32) []byte {
	return append(dst, byte(index>>16), byte(index>>8), byte(index))
}

// newState starts either end; remote is nil for the responder, who learns it.
func newState(l Local, remote, header []byte) (*flynn.HandshakeState, error) {
	prologue := append([]byte(labelPrologue), l.Cluster[:]...)
	return newHandshake(l, remote, append(prologue, header...))
}

func newHandshake(l Local, remote, prologue []byte) (*flynn.HandshakeState, error) {
	c := &curve{static: l.Key.private}
	hs, err := flynn.NewHandshakeState(flynn.Config{
		CipherSuite:           flynn.NewCipherSuite(c, flynn.CipherChaChaPoly, flynn.HashBLAKE2s),
		Random:                l.random,
		Pattern:               flynn.HandshakeIK,
		Initiator:             remote != nil,
		Prologue:              prologue,
		PresharedKeyPlacement: 2,
		StaticKeypair:         flynn.DHKey{Private: l.Key.private.Bytes(), Public: l.Key.public[:]},
		PeerStatic:            remote,
	})
	if err != nil {
		return nil, fmt.Errorf("start handshake: %w", err)
	}
	return hs, nil
}

// curve is X25519 for one handshake. It keeps the two private keys as objects, since making one of bytes costs as much
// as using it.
type curve struct{ static, ephemeral *ecdh.PrivateKey }

func (c *curve) GenerateKeypair(random io.Reader) (flynn.DHKey, error) {
	if random == nil {
		random = rand.Reader
	}
	var b [KeySize]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return flynn.DHKey{}, err
	}
	p, err := ecdh.X25519().NewPrivateKey(b[:])
	if err != nil {
		return flynn.DHKey{}, err
	}
	c.ephemeral = p
	return flynn.DHKey{Private: p.Bytes(), Public: p.PublicKey().Bytes()}, nil
}

// DH yields zeros for a point of low order, as the Noise specification has it: an error in the middle of message 2
// would leave the initiator's state half mixed, and one forged packet would end a handshake. Who sends such a point
// gains nothing: the other Diffie-Hellman results and the pair secret are mixed as well.
func (c *curve) DH(private, public []byte) ([]byte, error) {
	key := c.static
	if c.ephemeral != nil && slices.Equal(private, c.ephemeral.Bytes()) {
		key = c.ephemeral
	}
	p, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	shared, err := key.ECDH(p)
	if err != nil {
		return make([]byte, KeySize), nil //nolint:nilerr // see above
	}
	return shared, nil
}

func (*curve) DHLen() int     { return KeySize }
func (*curve) DHName() string { return "25519" }
