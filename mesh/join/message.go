package join

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"weft/crypto/identity"
	"weft/crypto/tlv"
	"weft/mesh/peer"
)

var version = tlv.V(1, 0)

// Limits of messages.
const (
	maxFrame   = 1 << 20  // of a frame to the joiner
	maxRequest = 32 << 10 // of the joiner's request
	maxWelcome = 64 << 20 // of all that a sponsor sends
	maxBuild   = 128
	maxProof   = 64
	maxVoters  = 1 << 14 // that an issuer tells a voter, or a voter an issuer
	maxTold    = 512     // certificates in one answer
	maxItems   = 8192    // in one frame
)

// Types of frames; append-only.
const (
	frameRequest byte = 1
	frameRefusal byte = 2
	frameWelcome byte = 3
	frameItems   byte = 4
	frameRecords byte = 5
	frameRing    byte = 6
	frameEnd     byte = 7
)

func writeFrame(w io.Writer, kind byte, body []byte) error {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 5+len(body)), uint32(len(body)))
	b = append(b, kind)
	_, err := w.Write(append(b, body...))
	return err
}

func readFrame(r io.Reader, limit int) (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if uint64(size) > uint64(limit) {
		return 0, nil, fmt.Errorf("a frame of %d bytes, at most %d", size, limit)
	}
	body = make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return head[4], body, nil
}

// open starts reading a versioned message, shut ends it.
func open(what string, b []byte) (*tlv.Reader, error) {
	_, f, err := tlv.ParseVersioned(what, b, version)
	if err != nil {
		return nil, err
	}
	return tlv.NewReader(f), nil
}

func shut(what string, r *tlv.Reader) error {
	if err := r.Err(); err != nil {
		return fmt.Errorf("parse %s: %w", what, err)
	}
	return nil
}

// item reads a signed item out of a field; an absent one is nil.
func item[T any](r *tlv.Reader, tag uint16, parse func([]byte) (*T, error)) *T {
	if !r.Has(tag) {
		return nil
	}
	v, err := parse(r.Bytes(tag, identity.MaxItem))
	if err != nil {
		r.Fail(err)
		return nil
	}
	return v
}

func appendItem(b []byte, tag uint16, it identity.Item) []byte { return tlv.Append(b, tag, it.Raw()) }

// request is what the joiner says.
type request struct {
	application *identity.Application
	byNode      []byte // signatures over the session and the application
	byToken     []byte
	build       string
}

func (q *request) append(b []byte) []byte {
	b = tlv.AppendVersion(b, version)
	b = appendItem(b, 1, q.application)
	b = tlv.Append(b, 2, q.byNode)
	b = tlv.Append(b, 3, q.byToken)
	return tlv.AppendString(b, 4, clip(q.build, maxBuild))
}

func parseRequest(b []byte) (*request, error) {
	r, err := open("join request", b)
	if err != nil {
		return nil, err
	}
	r.Require(1, 2, 3)
	q := &request{
		application: item(r, 1, identity.ParseApplication),
		byNode:      r.Bytes(2, maxProof),
		byToken:     r.Bytes(3, maxProof),
		build:       printable(r.String(4, maxBuild)),
	}
	return q, shut("join request", r)
}

// welcomed is the head of the sponsor's answer; items, records and ring follow in frames of their own.
type welcomed struct {
	cluster     *identity.Cluster
	certificate *identity.Certificate
	observed    netip.AddrPort // where the sponsor sees the joiner
	build       string
}

func (w *welcomed) append(b []byte) []byte {
	b = tlv.AppendVersion(b, version)
	b = appendItem(b, 1, w.cluster)
	b = appendItem(b, 2, w.certificate)
	b = tlv.AppendAddrPort(b, 3, w.observed)
	return tlv.AppendString(b, 4, clip(w.build, maxBuild))
}

func parseWelcomed(b []byte) (*welcomed, error) {
	r, err := open("welcome", b)
	if err != nil {
		return nil, err
	}
	r.Require(1, 2)
	w := &welcomed{
		cluster:     item(r, 1, identity.ParseCluster),
		certificate: item(r, 2, identity.ParseCertificate),
		observed:    r.AddrPort(3),
		build:       printable(r.String(4, maxBuild)),
	}
	return w, shut("welcome", r)
}

// appendItems fills one frame of roster items and returns those that found no place.
func appendItems(b []byte, items [][]byte) (body []byte, rest [][]byte) {
	size, n := 0, 0
	for n < len(items) && n < maxItems && size+len(items[n])+4 < maxFrame/2 {
		size += len(items[n]) + 4
		n++
	}
	b = tlv.AppendVersion(b, version)
	return tlv.AppendList(b, 1, items[:n]), items[n:]
}

func parseItems(b []byte) ([][]byte, error) {
	r, err := open("roster items", b)
	if err != nil {
		return nil, err
	}
	items := r.List(1, maxItems)
	return items, shut("roster items", r)
}

// forward asks an issuer for a certificate.
type forward struct {
	application *identity.Application
	invitation  *identity.Invitation
}

func (q *forward) append(b []byte) []byte {
	b = tlv.AppendVersion(b, version)
	b = appendItem(b, 1, q.application)
	return appendItem(b, 2, q.invitation)
}

func parseForward(b []byte) (*forward, error) {
	r, err := open("forwarded application", b)
	if err != nil {
		return nil, err
	}
	r.Require(1, 2)
	q := &forward{application: item(r, 1, identity.ParseApplication), invitation: item(r, 2, identity.ParseInvitation)}
	return q, shut("forwarded application", r)
}

// issued is the issuer's answer to forward, and what it commits at the voters.
type issued struct {
	certificate *identity.Certificate
	items       [][]byte // that go with it: the delegation of a new issuer
}

func (a *issued) append(b []byte) []byte {
	b = tlv.AppendVersion(b, version)
	b = appendItem(b, 1, a.certificate)
	return tlv.AppendList(b, 2, a.items)
}

func parseIssued(b []byte) (*issued, error) {
	r, err := open("issued certificate", b)
	if err != nil {
		return nil, err
	}
	r.Require(1)
	a := &issued{certificate: item(r, 1, identity.ParseCertificate), items: r.List(2, maxTold)}
	return a, shut("issued certificate", r)
}

// attempt tells one round of promises from the next.
type attempt [8]byte

// ask is an issuer's question to a voter.
type ask struct {
	forward
	delegation *identity.Delegation // of the issuer: the voter may not have heard of it yet
	attempt    attempt
	voters     []peer.ID // that the issuer knows
}

func (q *ask) append(b []byte) []byte {
	b = q.forward.append(b)
	b = appendItem(b, 3, q.delegation)
	b = tlv.Append(b, 4, q.attempt[:])
	ids := make([]byte, 0, len(q.voters)*peer.IDSize)
	for _, id := range q.voters {
		ids = append(ids, id[:]...)
	}
	return tlv.Append(b, 5, ids)
}

func parseAsk(b []byte) (*ask, error) {
	r, err := open("question to a voter", b)
	if err != nil {
		return nil, err
	}
	r.Require(1, 2, 3, 4, 5)
	q := &ask{
		forward:    forward{item(r, 1, identity.ParseApplication), item(r, 2, identity.ParseInvitation)},
		delegation: item(r, 3, identity.ParseDelegation),
	}
	r.Copy(4, q.attempt[:])
	ids := r.Bytes(5, maxVoters*peer.IDSize)
	if len(ids)%peer.IDSize != 0 {
		r.Fail(errors.New("a list of ids that ends within one"))
		ids = nil
	}
	for ; len(ids) > 0; ids = ids[peer.IDSize:] {
		q.voters = append(q.voters, peer.ID(ids[:peer.IDSize]))
	}
	return q, shut("question to a voter", r)
}

// promised is a voter's yes.
type promised struct {
	joinSeq uint64                // the lowest that the voter has not given away
	already *identity.Certificate // of the node, when it is a member; then nothing was promised
	told    [][]byte              // certificates of voters that the issuer did not list
	joining []peer.Voter          // other nodes with a promise of this voter, that will vote
}

func (a *promised) append(b []byte) []byte {
	b = tlv.AppendVersion(b, version)
	b = tlv.AppendUint64(b, 1, a.joinSeq)
	if a.already != nil {
		b = appendItem(b, 2, a.already)
	}
	b = tlv.AppendList(b, 3, a.told)
	voters := make([]byte, 0, len(a.joining)*(peer.IDSize+8))
	for _, v := range a.joining {
		voters = append(voters, v.ID[:]...)
		voters = binary.BigEndian.AppendUint64(voters, v.JoinSeq)
	}
	return tlv.Append(b, 4, voters)
}

func parsePromised(b []byte) (*promised, error) {
	r, err := open("promise", b)
	if err != nil {
		return nil, err
	}
	r.Require(1, 4)
	a := &promised{
		joinSeq: r.Uint64(1),
		already: item(r, 2, identity.ParseCertificate),
		told:    r.List(3, maxTold),
	}
	const size = peer.IDSize + 8
	voters := r.Bytes(4, maxPromises*size)
	if len(voters)%size != 0 {
		r.Fail(errors.New("a list of voters that ends within one"))
		voters = nil
	}
	for ; len(voters) > 0; voters = voters[size:] {
		a.joining = append(a.joining, peer.Voter{
			ID:      peer.ID(voters[:peer.IDSize]),
			JoinSeq: binary.BigEndian.Uint64(voters[peer.IDSize:]),
		})
	}
	return a, shut("promise", r)
}

// release takes a promise back.
type release struct {
	node    peer.ID
	attempt attempt
}

func (q *release) append(b []byte) []byte {
	b = tlv.AppendVersion(b, version)
	b = tlv.Append(b, 1, q.node[:])
	return tlv.Append(b, 2, q.attempt[:])
}

func parseRelease(b []byte) (*release, error) {
	r, err := open("release", b)
	if err != nil {
		return nil, err
	}
	r.Require(1, 2)
	q := &release{}
	r.Copy(1, q.node[:])
	r.Copy(2, q.attempt[:])
	return q, shut("release", r)
}

// Answers between members begin with a byte that says which of two they are.
const (
	answerYes     byte = 0
	answerRefusal byte = 1
)

func yes(body []byte) []byte { return append([]byte{answerYes}, body...) }

func no(e *Error) []byte { return e.append([]byte{answerRefusal}) }

// parseAnswer takes an answer apart; a refusal comes as an *Error.
func parseAnswer(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, errors.New("parse answer: empty")
	}
	if b[0] == answerYes {
		return b[1:], nil
	}
	e, err := parseError(b[1:])
	if err != nil {
		return nil, err
	}
	return nil, e
}
