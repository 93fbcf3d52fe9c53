package noise

import (
	"errors"
	"fmt"
	"slices"

	"weft/crypto/tlv"
)

// version of offer and answer: another major version is refused, a higher minor one may add fields.
var version = tlv.V(1, 0)

// Limits of the protocol, checked before anything is kept.
const (
	MaxPSKs    = 4 // ids in an offer
	MaxCiphers = 8 // in an offer
)

// Tags, append only.
const (
	tagCounter uint16 = 1
	tagCiphers uint16 = 2
	tagPSKs    uint16 = 3
	tagEpoch   uint16 = 4
	tagCipher  uint16 = 5
	tagPSK     uint16 = 6
	tagIndex   uint16 = 7
	tagMTU     uint16 = 8
	tagPadding uint16 = 0xffff
)

// ID names a pair secret without telling it.
type ID [8]byte

// Offer is what the initiator says, sealed, in message 1.
type Offer struct {
	Counter uint64  // rises with each initiation of this static key, also across restarts
	Epoch   uint64  // of the initiator's static key
	Ciphers []uint8 // that it computes, best first
	PSKs    []ID    // secrets that it holds, newest first
	MTU     uint16  // largest inner packet that it wants, bytes; 0 when unknown
}

// Answer is what the responder says, sealed, in message 2.
type Answer struct {
	Index  uint32 // that the initiator shall write on datagrams
	Cipher uint8  // one of those offered
	PSK    ID     // one of those offered
	Epoch  uint64 // of the responder's static key
	MTU    uint16
}

var errPayload = errors.New("malformed handshake payload")

func (o *Offer) append(dst []byte) []byte {
	dst = tlv.AppendVersion(dst, version)
	dst = tlv.AppendUint64(dst, tagCounter, o.Counter)
	dst = tlv.Append(dst, tagCiphers, o.Ciphers)
	ids := make([]byte, 0, MaxPSKs*len(ID{}))
	for _, id := range o.PSKs {
		ids = append(ids, id[:]...)
	}
	dst = tlv.Append(dst, tagPSKs, ids)
	dst = tlv.AppendUint64(dst, tagEpoch, o.Epoch)
	return tlv.AppendUint16(dst, tagMTU, o.MTU)
}

// pad adds a field of zeros that makes a list of fields at least size bytes long.
func pad(dst []byte, size int) []byte {
	const header = 6
	if n := size - len(dst); n > 0 {
		dst = tlv.Append(dst, tagPadding, make([]byte, max(0, n-header)))
	}
	return dst
}

func parseOffer(b []byte) (Offer, error) {
	_, f, err := tlv.ParseVersioned("handshake offer", b, version)
	if err != nil {
		return Offer{}, err
	}
	r := tlv.NewReader(f)
	r.Require(tagCounter, tagCiphers, tagPSKs)
	o := Offer{
		Counter: r.Uint64(tagCounter),
		Epoch:   r.Uint64(tagEpoch),
		Ciphers: slices.Clone(r.Bytes(tagCiphers, MaxCiphers)),
		MTU:     r.Uint16(tagMTU),
	}
	ids := r.Bytes(tagPSKs, MaxPSKs*len(ID{}))
	if len(ids)%len(ID{}) != 0 {
		r.Fail(fmt.Errorf("%w: secret ids of %d bytes", errPayload, len(ids)))
	}
	for id := range slices.Chunk(ids, len(ID{})) {
		if len(id) == len(ID{}) {
			o.PSKs = append(o.PSKs, ID(id))
		}
	}
	return o, r.Err()
}

func (a *Answer) append(dst []byte) []byte {
	dst = tlv.AppendVersion(dst, version)
	dst = tlv.AppendUint64(dst, tagEpoch, a.Epoch)
	dst = tlv.AppendUint8(dst, tagCipher, a.Cipher)
	dst = tlv.Append(dst, tagPSK, a.PSK[:])
	dst = tlv.AppendUint32(dst, tagIndex, a.Index)
	return tlv.AppendUint16(dst, tagMTU, a.MTU)
}

func parseAnswer(b []byte) (Answer, error) {
	_, f, err := tlv.ParseVersioned("handshake answer", b, version)
	if err != nil {
		return Answer{}, err
	}
	r := tlv.NewReader(f)
	r.Require(tagCipher, tagPSK, tagIndex)
	a := Answer{
		Index: r.Uint32(tagIndex), Cipher: r.Uint8(tagCipher), Epoch: r.Uint64(tagEpoch), MTU: r.Uint16(tagMTU),
	}
	r.Copy(tagPSK, a.PSK[:])
	if a.Index > MaxIndex {
		r.Fail(fmt.Errorf("%w: index %d", errPayload, a.Index))
	}
	return a, r.Err()
}
