package identity

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"

	"weft/crypto/tlv"
)

// Limits of the format.
const (
	MaxItem = 16 << 10 // bytes of one signed item
	MaxName = 63       // bytes of a name of a node or cluster
	MaxTags = 16       // of an invitation
	MaxTag  = 63       // bytes of a tag
)

// Errors of parsing and verifying, to be asked with errors.Is. A *tlv.VersionError says that the item is of another
// format.
var (
	ErrMalformed = errors.New("malformed")                                // not an item of this kind
	ErrSignature = errors.New("signature does not verify")                // changed, or signed by another key
	ErrRoot      = errors.New("signed under the root of another cluster") // well-formed, but foreign
	ErrKind      = errors.New("unknown kind of item")                     // of a newer weft: keep and forward it
)

// Kind tells signed items apart; append-only.
type Kind uint8

// The kinds.
const (
	KindCluster     Kind = 1
	KindDelegation  Kind = 2
	KindInvitation  Kind = 3
	KindRevocation  Kind = 4
	KindApplication Kind = 5
	KindCertificate Kind = 6
	KindRemoval     Kind = 7
)

// String is the noun used in errors.
func (k Kind) String() string {
	switch k {
	case KindCluster:
		return "cluster"
	case KindDelegation:
		return "delegation"
	case KindInvitation:
		return "invitation"
	case KindRevocation:
		return "revocation"
	case KindApplication:
		return "application"
	case KindCertificate:
		return "certificate"
	case KindRemoval:
		return "removal"
	}
	return fmt.Sprintf("item of kind %d", uint8(k))
}

// Item is what all signed items share.
type Item interface {
	Kind() Kind
	// Raw is the item as it was signed, fields unknown to this build included.
	Raw() []byte
	// Verify checks all signatures down from root.
	Verify(root ed25519.PublicKey) error
}

var (
	_ Item = (*Cluster)(nil)
	_ Item = (*Delegation)(nil)
	_ Item = (*Invitation)(nil)
	_ Item = (*Revocation)(nil)
	_ Item = (*Application)(nil)
	_ Item = (*Certificate)(nil)
	_ Item = (*Removal)(nil)
)

// Parse reads an item of any kind. The error wraps ErrKind when the kind is unknown.
func Parse(raw []byte) (Item, error) {
	if len(raw) < itemHeader {
		return nil, fmt.Errorf("parse item: %w: %d bytes", ErrMalformed, len(raw))
	}
	switch kind := Kind(raw[1]); kind {
	case KindCluster:
		return orNil(ParseCluster(raw))
	case KindDelegation:
		return orNil(ParseDelegation(raw))
	case KindInvitation:
		return orNil(ParseInvitation(raw))
	case KindRevocation:
		return orNil(ParseRevocation(raw))
	case KindApplication:
		return orNil(ParseApplication(raw))
	case KindCertificate:
		return orNil(ParseCertificate(raw))
	case KindRemoval:
		return orNil(ParseRemoval(raw))
	default:
		return nil, fmt.Errorf("parse item: %w: %d", ErrKind, uint8(kind))
	}
}

// orNil keeps a nil pointer from becoming an Item that is not nil.
func orNil[T Item](item T, err error) (Item, error) {
	if err != nil {
		return nil, err
	}
	return item, nil
}

// version of all items. They share one number: a change of the envelope changes them all.
var version = tlv.V(1, 0)

const itemHeader = 1 + 1 + 4

// envelope is a signed item taken apart; its slices are parts of raw, which nobody changes.
type envelope struct {
	kind   Kind
	raw    []byte // the item
	signed []byte // what the signatures cover: all but them
	body   tlv.Fields
	sigs   [2][]byte
}

func (e *envelope) Kind() Kind  { return e.kind }
func (e *envelope) Raw() []byte { return e.raw }

// signatures of a kind: an application carries those of node and token.
func (k Kind) signatures() int {
	if k == KindApplication {
		return 2
	}
	return 1
}

// domain of the signatures of a kind. With two signatures they differ, so that none can stand in for the other.
func (k Kind) domain(signature int) string {
	if signature == 1 {
		return "weft " + k.String() + " by token"
	}
	return "weft " + k.String()
}

func parseEnvelope(kind Kind, raw []byte) (envelope, error) {
	fail := func(format string, args ...any) (envelope, error) {
		return envelope{}, fmt.Errorf("parse %s: %w: %s", kind, ErrMalformed, fmt.Sprintf(format, args...))
	}
	if len(raw) > MaxItem {
		return fail("%d bytes, at most %d", len(raw), MaxItem)
	}
	if len(raw) < itemHeader {
		return fail("%d bytes", len(raw))
	}
	raw = bytes.Clone(raw) // items live long, buffers of the network do not
	if got := tlv.Version(raw[0]); got.Major() != version.Major() {
		return envelope{}, &tlv.VersionError{What: kind.String(), Got: got, Want: version}
	}
	if Kind(raw[1]) != kind {
		return fail("it is a %s", Kind(raw[1]))
	}
	n, sigs := uint64(binary.BigEndian.Uint32(raw[2:])), raw[itemHeader:]
	if n+uint64(kind.signatures())*ed25519.SignatureSize != uint64(len(sigs)) {
		return fail("a body of %d bytes in an item of %d", n, len(raw))
	}
	body, err := tlv.Parse(sigs[:n])
	if err != nil {
		return fail("%v", err)
	}
	e := envelope{kind: kind, raw: raw, signed: raw[:itemHeader+n], body: body}
	for i, sigs := 0, sigs[n:]; len(sigs) > 0; i, sigs = i+1, sigs[ed25519.SignatureSize:] {
		e.sigs[i] = sigs[:ed25519.SignatureSize]
	}
	return e, nil
}

// seal makes an item of a body; each key makes one signature.
func seal(kind Kind, body []byte, keys ...Key) []byte {
	b := make([]byte, 0, itemHeader+len(body)+len(keys)*ed25519.SignatureSize)
	b = append(b, byte(version), byte(kind))
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	b = append(b, body...)
	signed := b
	for i, k := range keys {
		b = append(b, k.Sign(kind.domain(i), signed)...)
	}
	return b
}

// verify checks one signature of the item.
func (e *envelope) verify(signature int, by ed25519.PublicKey) error {
	if !Verify(by, e.kind.domain(signature), e.signed, e.sigs[signature]) {
		return fmt.Errorf("verify %s: %w", e.kind, ErrSignature)
	}
	return nil
}

// malformed is the error of a decoder whose Reader found something.
func (e *envelope) malformed(err error) error {
	return fmt.Errorf("parse %s: %w: %w", e.kind, ErrMalformed, err)
}
