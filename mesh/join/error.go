package join

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"weft/crypto/identity"
	"weft/crypto/tlv"
	"weft/crypto/token"
)

// Codes say to programs why a node could not join; append-only.
const (
	CodeNotToken    = token.CodeNotToken
	CodeTruncated   = token.CodeTruncated
	CodeNewer       = token.CodeNewer // the token
	CodeUnknown     = "token-unknown"
	CodeExpired     = "token-expired"
	CodeUsedUp      = "token-used-up"
	CodeRevoked     = "token-revoked"
	CodeForeign     = "token-foreign"
	CodeImpostor    = "seed-impostor"
	CodeUnreachable = "seed-unreachable"
	CodeNoQuorum    = "no-quorum"
	CodeNoIssuer    = "no-issuer"
	CodeRemoved     = "node-removed"
	CodeReturned    = "node-returned"
	CodeBusy        = "busy"
	CodeFailed      = "failed" // a member could not do its part
	CodeVersion     = "version"
	CodeInvalid     = "invalid" // a request or an answer that makes no sense
)

// Error tells a person why a node could not join: a sentence, the cause, and what to do.
type Error struct {
	Code     string
	Sentence string
	Cause    string
	Hint     string

	evidence []byte // a revocation, from member to member
}

// Error is the sentence with its cause.
func (e *Error) Error() string {
	if e.Cause == "" {
		return e.Sentence
	}
	return e.Sentence + " (" + e.Cause + ")"
}

// Temporary reports whether the same request may succeed later without anybody's doing.
func (e *Error) Temporary() bool {
	switch e.Code {
	case CodeUnreachable, CodeNoQuorum, CodeNoIssuer, CodeBusy, CodeFailed:
		return true
	}
	return false
}

// Code is the code of an error of this package; empty for another error.
func Code(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

// Limits of an Error on the wire.
const (
	maxCode = 64
	maxText = 1024
)

const (
	errorCode     = 1
	errorSentence = 2
	errorCause    = 3
	errorHint     = 4
	errorEvidence = 5
)

func (e *Error) append(b []byte) []byte {
	b = tlv.AppendVersion(b, version)
	b = tlv.AppendString(b, errorCode, clip(e.Code, maxCode))
	b = tlv.AppendString(b, errorSentence, clip(e.Sentence, maxText))
	b = tlv.AppendString(b, errorCause, clip(e.Cause, maxText))
	b = tlv.AppendString(b, errorHint, clip(e.Hint, maxText))
	if len(e.evidence) > 0 {
		b = tlv.Append(b, errorEvidence, e.evidence)
	}
	return b
}

func parseError(b []byte) (*Error, error) {
	r, err := open("refusal", b)
	if err != nil {
		return nil, err
	}
	r.Require(errorCode, errorSentence)
	e := &Error{
		Code:     printable(r.String(errorCode, maxCode)),
		Sentence: printable(r.String(errorSentence, maxText)),
		Cause:    printable(r.String(errorCause, maxText)),
		Hint:     printable(r.String(errorHint, maxText)),
		evidence: r.Bytes(errorEvidence, identity.MaxItem),
	}
	if e.Code == "" || e.Sentence == "" {
		r.Fail(errors.New("a refusal without words"))
	}
	return e, shut("refusal", r)
}

// clip shortens s to n bytes of whole characters.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}

// printable keeps what another machine said from playing with the terminal.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return -1
	}, s)
}

func refuse(code, sentence, cause, hint string) *Error {
	return &Error{Code: code, Sentence: sentence, Cause: cause, Hint: hint}
}

const hintNewToken = "Make a new token on a member (weft token create) and join with that."

func errUnknown(by string) *Error {
	return refuse(CodeUnknown, "the cluster does not know this token", by+" has no record of it", hintNewToken)
}

func errExpired(inv *identity.Invitation, by string) *Error {
	cause := fmt.Sprintf("it was valid until %s, by the clock of %s", inv.NotAfter.UTC().Format(time.RFC3339), by)
	return refuse(CodeExpired, "the token has expired", cause, hintNewToken)
}

func errUsedUp(inv *identity.Invitation) *Error {
	nodes := "1 node"
	if inv.Uses != 1 {
		nodes = fmt.Sprintf("%d nodes", inv.Uses)
	}
	return refuse(CodeUsedUp, "the token has been used up", "it was good for "+nodes, hintNewToken)
}

func errRevoked(by string) *Error {
	return refuse(CodeRevoked, "the token was revoked", by+" has the revocation", hintNewToken)
}

func errRemoved(why identity.Reason, by string) *Error {
	if why == identity.Stolen {
		return refuse(CodeRemoved, "this node was reported stolen and may not come back", "said by "+by,
			"If that is a mistake, wipe it (weft leave --purge) and join as a new node with a new token.")
	}
	return refuse(CodeRemoved, "this node was removed from the cluster", why.String()+", said by "+by,
		"Let it join as a new node, with a new token: weft join TOKEN.")
}

func errNoSponsor(who string) *Error {
	return refuse(CodeNoIssuer, "the machine that was asked was removed from the cluster itself", "it is "+who,
		"Make a new token on a member (weft token create) and join with that.")
}

func errReturned(as string) *Error {
	return refuse(CodeReturned, "this node has come back already", "as "+as+"; its disk may run twice",
		"Let this one join as a new node, with a new token: weft join TOKEN.")
}

func errForeign(at netip.AddrPort) *Error {
	return refuse(CodeForeign, "the token is for another cluster than the machine at "+at.String(),
		"its root key is not the one that the token names",
		"Make a token on the cluster that is there now. If it should be the token's cluster, somebody is in between.")
}

func errImpostor(at netip.AddrPort, cause string) *Error {
	return refuse(CodeImpostor, "the machine at "+at.String()+" is not the member that the token names", cause,
		hintNewToken)
}

func errNoQuorum(answered, voters int, missing []string) *Error {
	cause := fmt.Sprintf("%d of %d answered", answered, voters)
	if len(missing) > 0 {
		cause += ", missing: " + strings.Join(missing, ", ")
	}
	return refuse(CodeNoQuorum, "the cluster cannot admit a node now: too few of its voting members answer", cause,
		"Start the missing members, then join again.")
}

func errNoIssuer(tried []string) *Error {
	cause := "no issuer is known"
	if len(tried) > 0 {
		cause = "tried " + strings.Join(tried, ", ")
	}
	return refuse(CodeNoIssuer, "no member that may admit nodes can be reached", cause,
		"Start one of the issuers (weft issuer list), then join again.")
}

func errBusy(cause string) *Error {
	return refuse(CodeBusy, "the cluster is busy admitting other nodes", cause, "Join again in a minute.")
}

func errFailed(by string) *Error {
	return refuse(CodeFailed, "a member of the cluster could not do its part of the join", "the log of "+by+" says why",
		"Join again when it is repaired.")
}

func errInvalid(cause error) *Error {
	if v, ok := errors.AsType[*tlv.VersionError](cause); ok {
		return refuse(CodeVersion, "this node and the cluster run versions of weft that do not understand each other",
			v.Error(), "Upgrade the older side, then join again.")
	}
	return refuse(CodeInvalid, "the cluster and this node did not understand each other", cause.Error(),
		"Compare their versions: weft version.")
}

func errUnreachable(causes []error) *Error {
	texts := make([]string, len(causes))
	for i, err := range causes {
		texts[i] = err.Error()
	}
	return refuse(CodeUnreachable, "no seed of the token can be reached", strings.Join(texts, "; "),
		"Is weft running there, and is its port open (6783 TCP and UDP)?")
}
