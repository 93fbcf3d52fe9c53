package ipamsim

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"weft/ipam/ring"
	"weft/mesh/peer"
)

// key stands in for an identity key: its signature is a hash that anybody can make, which costs a hundredth of a real
// one. Nobody in a World forges; what forged signatures do is tested where signatures are checked.
type key struct{ id peer.ID }

func newKey(seed uint64, index int) key {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], seed)
	binary.BigEndian.PutUint64(b[8:], uint64(index))
	sum := sha256.Sum256(b[:])
	return key{peer.ID(sum[:peer.IDSize])}
}

func (k key) ID() peer.ID { return k.id }

func (k key) Sign(domain string, msg []byte) []byte { return signature(k.id, domain, msg) }

func signature(id peer.ID, domain string, msg []byte) []byte {
	b := make([]byte, 0, 512)
	b = append(b, id[:]...)
	b = append(b, domain...)
	sum := sha256.Sum256(append(b, msg...))
	return sum[:16]
}

var errForged = errors.New("signature does not fit")

// verifier judges signatures as a machine can: of whom it has a certificate.
func (w *World) verifier(m *Machine) ring.Verifier {
	return func(id peer.ID, domain string, msg, sig []byte) error {
		w.mu.Lock()
		r := m.roster
		w.mu.Unlock()
		if _, ok := r.member(id); !ok {
			return fmt.Errorf("%w: %s", ring.ErrUnknownSigner, id.Short())
		}
		if string(signature(id, domain, msg)) != string(sig) {
			return errForged
		}
		return nil
	}
}
