package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"

	"weft/crypto/tlv"
	"weft/ipam/ring"
	"weft/mesh/peer"
)

// The calls between members. Requests and answers are tlv fields under messageVersion; a ring in them is in the wire
// form of package ring.
const (
	methodSync  = "ipam.sync"  // who starts tells which start it is, and hears what the other knows
	methodSpare = "ipam.spare" // how large a block could be lent now
	methodGrant = "ipam.grant" // lend one
	methodPush  = "ipam.push"  // here is a ring; the answer comes when it is durable

	messageVersion = tlv.Version(0x10)
	maxVoters      = 1 << 12
	maxHeard       = 1 << 14
	heardSize      = peer.IDSize + 16
	maxDigest      = 64
	maxMessage     = 1 << 20 // ring and voters fit together
)

// Methods lists the calls that HandleCall answers.
func Methods() []string {
	return []string{methodSync, methodSpare, methodGrant, methodPush, methodPromise}
}

// syncRequest is what a node says of itself after its start.
type syncRequest struct {
	start  start
	digest []byte // of its ring
	roster []byte // a summary; nil when the other's roster is not asked for
	starts []byte // sumOf what a novice has heard; nil when it is none
}

// syncAnswer is what the other knows.
type syncAnswer struct {
	before start        // the last start of the asker that was heard of before this request
	ring   []byte       // nil when the digests are equal
	voters []peer.Voter // as the other sees them

	roster  []byte // what the asker's lacks
	partial bool   // it was too long, and is missing

	heard  []heard // for a novice; nil when it has heard of the same
	novice bool    // the other is one itself, or could not tell all
}

// spareRequest asks what could be lent.
type spareRequest struct{ digest []byte }

// spareAnswer says how many addresses the largest block to lend has, or why there is none and, when the digests differ,
// who owns what.
type spareAnswer struct {
	size   uint64
	reason lack
	ring   []byte
}

// grantRequest asks for a block. A repeated request gets the same answer.
type grantRequest struct{ request requestID }

// grantAnswer brings a block with the proof of its grant, or says why there is none.
type grantAnswer struct {
	ring   []byte
	reason lack
}

// push brings a ring, facts of the roster, which starts of others have been heard of, and whom its sender refuses without a
// record (plead); each may be missing. It is answered when all of it but the last is durable, and not when a part was left out.
type push struct {
	ring, roster []byte
	heard        []heard
	refused      []peer.ID
}

// heard is a start of a member, in a message.
type heard struct {
	node  peer.ID
	start start
}

// pushAnswer says what the other's roster is.
type pushAnswer struct{ summary []byte }

// lack is why a member lends nothing. It travels, so numbers are never given a new meaning.
type lack uint8

const (
	lackNothing     lack = iota
	lackSpace            // it has no block to spare
	lackConfirmed        // it started and has not heard a quorum yet
	lackIdentity         // it must not write under its identity any more
	lackUnreachable      // it did not answer: never on the wire
)

const (
	tagSyncIncarnation = 1
	tagSyncStart       = 2
	tagSyncDigest      = 3 // of the request
	tagSyncRing        = 3 // of the answer
	tagSyncVoters      = 4
	tagSyncSummary     = 4 // of the request
	tagSyncRoster      = 5
	tagSyncStarts      = 5 // of the request
	tagSyncPartial     = 6
	tagSyncHeard       = 7 // as tagPushHeard
	tagSyncNovice      = 8

	tagSpareDigest = 1 // of the request
	tagSpareSize   = 1 // of the answer
	tagSpareReason = 2
	tagSpareRing   = 3

	tagGrantRequest = 1
	tagGrantRing    = 2
	tagGrantReason  = 3

	tagPushRing    = 1
	tagPushRoster  = 2
	tagPushHeard   = 3 // list of node(16) incarnation(8) start(8)
	tagPushRefused = 4 // list of node(16)
	tagPushSummary = 1 // of the answer
)

// parseLack takes a reason that this build does not know for the plainest one.
func parseLack(b uint8) lack {
	if l := lack(b); l < lackUnreachable {
		return l
	}
	return lackSpace
}

func newMessage() []byte { return tlv.AppendVersion(nil, messageVersion) }

func parseMessage(what string, b []byte) (*tlv.Reader, error) {
	if len(b) > maxMessage {
		return nil, fmt.Errorf("%s of %d bytes, at most %d", what, len(b), maxMessage)
	}
	_, f, err := tlv.ParseVersioned(what, b, messageVersion)
	if err != nil {
		return nil, err
	}
	return tlv.NewReader(f), nil
}

func (m syncRequest) encode() []byte {
	b := tlv.AppendUint64(newMessage(), tagSyncIncarnation, m.start.incarnation)
	b = tlv.AppendUint64(b, tagSyncStart, m.start.number)
	b = tlv.Append(b, tagSyncDigest, m.digest)
	if m.roster != nil {
		b = tlv.Append(b, tagSyncSummary, m.roster)
	}
	if m.starts != nil {
		b = tlv.Append(b, tagSyncStarts, m.starts)
	}
	return b
}

func parseSyncRequest(b []byte) (m syncRequest, err error) {
	r, err := parseMessage("a sync request", b)
	if err != nil {
		return m, err
	}
	r.Require(tagSyncIncarnation, tagSyncStart)
	m.start = start{r.Uint64(tagSyncIncarnation), r.Uint64(tagSyncStart)}
	m.digest, m.roster = r.Bytes(tagSyncDigest, maxDigest), r.Bytes(tagSyncSummary, maxMessage)
	m.starts = r.Bytes(tagSyncStarts, maxDigest)
	if m.start.incarnation == 0 {
		r.Fail(errors.New("a start without a number"))
	}
	return m, r.Err()
}

func (m syncAnswer) encode() []byte {
	b := tlv.AppendUint64(newMessage(), tagSyncIncarnation, m.before.incarnation)
	b = tlv.AppendUint64(b, tagSyncStart, m.before.number)
	if m.ring != nil {
		b = tlv.Append(b, tagSyncRing, m.ring)
	}
	var voters [][]byte
	for _, v := range m.voters {
		voters = append(voters, binary.BigEndian.AppendUint64(v.ID[:], v.JoinSeq))
	}
	b = tlv.AppendList(b, tagSyncVoters, voters)
	if m.roster != nil {
		b = tlv.Append(b, tagSyncRoster, m.roster)
	}
	if m.partial {
		b = tlv.AppendUint8(b, tagSyncPartial, 1)
	}
	b = tlv.AppendList(b, tagSyncHeard, appendHeard(m.heard))
	return tlv.AppendBool(b, tagSyncNovice, m.novice)
}

func parseSyncAnswer(b []byte) (m syncAnswer, err error) {
	r, err := parseMessage("a sync answer", b)
	if err != nil {
		return m, err
	}
	r.Require(tagSyncIncarnation, tagSyncStart)
	m.before = start{r.Uint64(tagSyncIncarnation), r.Uint64(tagSyncStart)}
	m.ring = r.Bytes(tagSyncRing, ring.MaxWire)
	for _, v := range r.List(tagSyncVoters, maxVoters) {
		if len(v) != peer.IDSize+8 {
			r.Fail(fmt.Errorf("a voter of %d bytes", len(v)))
			break
		}
		m.voters = append(m.voters, peer.Voter{ID: peer.ID(v[:peer.IDSize]), JoinSeq: binary.BigEndian.Uint64(v[peer.IDSize:])})
	}
	m.roster, m.partial = r.Bytes(tagSyncRoster, maxMessage), r.Uint8(tagSyncPartial) != 0
	m.heard, m.novice = parseHeard(r, tagSyncHeard), r.Bool(tagSyncNovice)
	return m, r.Err()
}

func (m spareAnswer) encode() []byte {
	b := tlv.AppendUint64(newMessage(), tagSpareSize, m.size)
	b = tlv.AppendUint8(b, tagSpareReason, uint8(m.reason))
	if m.ring != nil {
		b = tlv.Append(b, tagSpareRing, m.ring)
	}
	return b
}

func (m spareRequest) encode() []byte { return tlv.Append(newMessage(), tagSpareDigest, m.digest) }

func parseSpareRequest(b []byte) (m spareRequest, err error) {
	r, err := parseMessage("a question about spare space", b)
	if err != nil {
		return m, err
	}
	m = spareRequest{r.Bytes(tagSpareDigest, maxDigest)}
	return m, r.Err()
}

func parseSpareAnswer(b []byte) (m spareAnswer, err error) {
	r, err := parseMessage("an answer about spare space", b)
	if err != nil {
		return m, err
	}
	r.Require(tagSpareSize)
	m = spareAnswer{r.Uint64(tagSpareSize), parseLack(r.Uint8(tagSpareReason)), r.Bytes(tagSpareRing, ring.MaxWire)}
	return m, r.Err()
}

func (m grantRequest) encode() []byte { return tlv.Append(newMessage(), tagGrantRequest, m.request[:]) }

func parseGrantRequest(b []byte) (m grantRequest, err error) {
	r, err := parseMessage("a request for space", b)
	if err != nil {
		return m, err
	}
	r.Require(tagGrantRequest)
	r.Copy(tagGrantRequest, m.request[:])
	return m, r.Err()
}

func (m grantAnswer) encode() []byte {
	b := newMessage()
	if m.ring != nil {
		b = tlv.Append(b, tagGrantRing, m.ring)
	}
	return tlv.AppendUint8(b, tagGrantReason, uint8(m.reason))
}

func parseGrantAnswer(b []byte) (m grantAnswer, err error) {
	r, err := parseMessage("an answer with space", b)
	if err != nil {
		return m, err
	}
	m = grantAnswer{r.Bytes(tagGrantRing, ring.MaxWire), parseLack(r.Uint8(tagGrantReason))}
	return m, r.Err()
}

func (m push) encode() []byte {
	b := newMessage()
	if m.ring != nil {
		b = tlv.Append(b, tagPushRing, m.ring)
	}
	if m.roster != nil {
		b = tlv.Append(b, tagPushRoster, m.roster)
	}
	b = tlv.AppendList(b, tagPushHeard, appendHeard(m.heard))
	var list [][]byte
	for _, id := range m.refused {
		list = append(list, id[:])
	}
	return tlv.AppendList(b, tagPushRefused, list)
}

func parsePush(b []byte) (m push, err error) {
	r, err := parseMessage("a pushed ring", b)
	if err != nil {
		return m, err
	}
	m = push{ring: r.Bytes(tagPushRing, ring.MaxWire), roster: r.Bytes(tagPushRoster, maxMessage)}
	m.heard = parseHeard(r, tagPushHeard)
	for _, e := range r.List(tagPushRefused, ring.MaxNamed) {
		if len(e) != peer.IDSize {
			r.Fail(fmt.Errorf("a node of %d bytes", len(e)))
			break
		}
		m.refused = append(m.refused, peer.ID(e))
	}
	return m, r.Err()
}

// appendHeard makes entries of a list of starts.
func appendHeard(all []heard) (list [][]byte) {
	for _, h := range all {
		e := binary.BigEndian.AppendUint64(h.node[:], h.start.incarnation)
		list = append(list, binary.BigEndian.AppendUint64(e, h.start.number))
	}
	return list
}

func parseHeard(r *tlv.Reader, tag uint16) (all []heard) {
	for _, e := range r.List(tag, maxHeard) {
		if len(e) < heardSize {
			r.Fail(fmt.Errorf("a start of %d bytes", len(e)))
			return nil
		}
		at := e[peer.IDSize:]
		all = append(all, heard{peer.ID(e[:peer.IDSize]), start{binary.BigEndian.Uint64(at), binary.BigEndian.Uint64(at[8:])}})
	}
	return all
}

func (m pushAnswer) encode() []byte { return tlv.Append(newMessage(), tagPushSummary, m.summary) }

func parsePushAnswer(b []byte) (m pushAnswer, err error) {
	r, err := parseMessage("an answer to a pushed ring", b)
	if err != nil {
		return m, err
	}
	m = pushAnswer{r.Bytes(tagPushSummary, maxMessage)}
	return m, r.Err()
}
