package ipam

import (
	"encoding/binary"
	"fmt"

	"weft/crypto/tlv"
	"weft/ipam/ring"
	"weft/mesh/peer"
)

// methodPromise asks a survivor to promise a view.
const methodPromise = "ipam.promise"

// promiseRequest is a coordinator's question.
type promiseRequest struct {
	proposal []byte // as the coordinator signed it
	digest   []byte // of its ring
	roster   []byte // summary of its roster
	delta    []byte // what the survivor's roster lacked when it was asked before
}

// promiseAnswer is a survivor's yes with all that it knows, or its no with the reason.
type promiseAnswer struct {
	verdict verdict
	ring    []byte       // nil when the digests are equal
	roster  []byte       // what the coordinator's roster lacks
	partial bool         // the roster's part did not fit
	summary []byte       // of the roster, with verdictUnproven: the coordinator knows what it lacks
	joining []peer.Info  // members-to-be that it has promised to admit
	higher  []byte       // the proposal that it has promised, with verdictNumber
	newer   []ring.Named // starts that it has heard of, with verdictNewer and verdictStopped
	idle    bool         // it can use no block: it has stopped or left
	novice  bool         // it counts in no quorum of promises yet
}

// verdict is a survivor's decision. It travels, so numbers are never given a new meaning.
type verdict uint8

const (
	verdictYes      verdict = iota
	verdictUnproven         // a removal or the coordinator's right to remove is not known here yet
	verdictNumber           // a higher number was promised, or is complete
	verdictNewer            // a member that is to be removed has started again since
	verdictStopped          // this is the member that is to be removed: it has stopped for good
	verdictUnknown          // of a newer weft
)

const (
	tagPromiseProposal = 1 // of the request
	tagPromiseDigest   = 2
	tagPromiseSummary  = 3
	tagPromiseDelta    = 4

	tagPromiseVerdict = 1 // of the answer
	tagPromiseRing    = 2
	tagPromiseRoster  = 3
	tagPromisePartial = 4
	tagPromiseJoining = 5 // list of node(16) sequence(8) flags(1)
	tagPromiseHigher  = 6
	tagPromiseNewer   = 7 // list of node(16) incarnation(8)
	tagPromiseIdle    = 8
	tagPromiseLacks   = 9 // summary
	tagPromiseNovice  = 10

	joinerSize    = peer.IDSize + 8 + 1
	joinerSilent  = 1 // flag: it will not vote
	namedSize     = peer.IDSize + 8
	maxJoiners    = 1024
	maxRosterPart = 64 << 10 // bytes: with the largest ring it still fits into a message
)

func (m promiseRequest) encode() []byte {
	b := tlv.Append(newMessage(), tagPromiseProposal, m.proposal)
	b = tlv.Append(b, tagPromiseDigest, m.digest)
	b = tlv.Append(b, tagPromiseSummary, m.roster)
	if m.delta != nil {
		b = tlv.Append(b, tagPromiseDelta, m.delta)
	}
	return b
}

func parsePromiseRequest(b []byte) (m promiseRequest, err error) {
	r, err := parseMessage("a proposal", b)
	if err != nil {
		return m, err
	}
	r.Require(tagPromiseProposal)
	m = promiseRequest{
		r.Bytes(tagPromiseProposal, maxMessage), r.Bytes(tagPromiseDigest, maxDigest),
		r.Bytes(tagPromiseSummary, maxMessage), r.Bytes(tagPromiseDelta, maxMessage),
	}
	return m, r.Err()
}

func (m promiseAnswer) encode() []byte {
	b := tlv.AppendUint8(newMessage(), tagPromiseVerdict, uint8(m.verdict))
	if m.ring != nil {
		b = tlv.Append(b, tagPromiseRing, m.ring)
	}
	if m.roster != nil {
		b = tlv.Append(b, tagPromiseRoster, m.roster)
	}
	b = tlv.AppendBool(b, tagPromisePartial, m.partial)
	var joining, newer [][]byte
	for _, p := range m.joining {
		e := binary.BigEndian.AppendUint64(p.ID[:], p.JoinSeq)
		flags := byte(0)
		if p.Ephemeral {
			flags = joinerSilent
		}
		joining = append(joining, append(e, flags))
	}
	b = tlv.AppendList(b, tagPromiseJoining, joining)
	if m.higher != nil {
		b = tlv.Append(b, tagPromiseHigher, m.higher)
	}
	for _, n := range m.newer {
		newer = append(newer, binary.BigEndian.AppendUint64(n.Node[:], n.Incarnation))
	}
	b = tlv.AppendList(b, tagPromiseNewer, newer)
	b = tlv.AppendBool(b, tagPromiseIdle, m.idle)
	if m.summary != nil {
		b = tlv.Append(b, tagPromiseLacks, m.summary)
	}
	return tlv.AppendBool(b, tagPromiseNovice, m.novice)
}

func parsePromiseAnswer(b []byte) (m promiseAnswer, err error) {
	r, err := parseMessage("an answer to a proposal", b)
	if err != nil {
		return m, err
	}
	r.Require(tagPromiseVerdict)
	m.verdict = min(verdict(r.Uint8(tagPromiseVerdict)), verdictUnknown)
	m.ring = r.Bytes(tagPromiseRing, ring.MaxWire)
	m.roster = r.Bytes(tagPromiseRoster, maxMessage)
	m.partial = r.Bool(tagPromisePartial)
	for _, e := range r.List(tagPromiseJoining, maxJoiners) {
		if len(e) < joinerSize {
			r.Fail(fmt.Errorf("a joiner of %d bytes", len(e)))
			break
		}
		m.joining = append(m.joining, peer.Info{
			ID:      peer.ID(e[:peer.IDSize]),
			JoinSeq: binary.BigEndian.Uint64(e[peer.IDSize:]), Ephemeral: e[peer.IDSize+8]&joinerSilent != 0,
		})
	}
	m.higher = r.Bytes(tagPromiseHigher, maxMessage)
	for _, e := range r.List(tagPromiseNewer, ring.MaxNamed) {
		if len(e) < namedSize {
			r.Fail(fmt.Errorf("a start of %d bytes", len(e)))
			break
		}
		m.newer = append(m.newer, ring.Named{
			Node:        peer.ID(e[:peer.IDSize]),
			Incarnation: binary.BigEndian.Uint64(e[peer.IDSize:]),
		})
	}
	m.idle = r.Bool(tagPromiseIdle)
	m.summary = r.Bytes(tagPromiseLacks, maxMessage)
	m.novice = r.Bool(tagPromiseNovice)
	return m, r.Err()
}
