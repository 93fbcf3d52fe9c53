package control

import (
	"context"
	"errors"
	"strings"
)

// Code is the kind of a failure. A Code is itself an error, so that errors.Is(err, control.NotFound) works on
// whatever a Client or a Backend returned.
type Code string

// The codes; a code that a client does not know counts as Failed.
const (
	Failed      Code = "failed"      // everything without a better word
	Usage       Code = "usage"       // the request makes no sense
	Unreachable Code = "unreachable" // no daemon answered
	Denied      Code = "denied"      // the caller may not do this
	NotFound    Code = "not-found"   // no such peer, token, namespace
	Conflict    Code = "conflict"    // it collides with what is there
	NotReady    Code = "not-ready"   // the node is in no state to do this; later perhaps
	NoQuorum    Code = "no-quorum"   // too few members answered
	Unsupported Code = "unsupported" // this machine or this daemon cannot
	Busy        Code = "busy"        // too many requests at once
	Timeout     Code = "timeout"     // it took too long
)

// Error is the code as a word.
func (c Code) Error() string { return string(c) }

// Exit codes of the command line.
const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitUnreachable = 3
)

// Error is a failure in words for a person: what went wrong as a sentence without its full stop, why, and what to do.
//
//	cannot reach 10.0.0.7:6783 (connection refused). Is weft running there? Try: weft doctor 10.0.0.7
//	---------- Message -------  ----- Cause ------   ------------------- Hint ----------------------
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Cause   string `json:"cause,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// Error joins the three parts.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Message)
	if e.Cause != "" {
		b.WriteString(" (" + e.Cause + ")")
	}
	if e.Hint != "" {
		b.WriteString(". " + e.Hint)
	}
	return b.String()
}

// Is matches the code, so that callers need not take the error apart.
func (e *Error) Is(target error) bool {
	c, ok := target.(Code)
	return ok && c == e.Code
}

// Explain makes an Error of any error. An *Error anywhere in the chain is kept whole, with what wraps it dropped: it
// was written for a person, its wrapping for a log.
func Explain(err error) *Error {
	var e *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Code: Timeout, Message: "it took too long", Cause: err.Error()}
	case errors.Is(err, context.Canceled):
		return &Error{Code: Failed, Message: "it was interrupted", Cause: err.Error()}
	}
	return &Error{Code: Failed, Message: err.Error()}
}

// ExitCode is what a command that ended with err exits with.
func ExitCode(err error) int {
	switch {
	case err == nil:
		return ExitOK
	case errors.Is(err, Usage):
		return ExitUsage
	case errors.Is(err, Unreachable):
		return ExitUnreachable
	}
	return ExitFailed
}
