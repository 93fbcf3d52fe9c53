package cni

import (
	"context"
	"errors"
	"fmt"

	"weft/prog/control"
)

// The error codes of the specification, and ours from 100 on. They are append-only.
const (
	codeVersion     = 1
	codeField       = 2   // a value of the configuration that cannot be
	codeUnknown     = 3   // CHECK: no such attachment
	codeEnvironment = 4   // a variable of the environment is missing or impossible
	codeIO          = 5   //
	codeDecode      = 6   // not JSON of the right shape
	codeConfig      = 7   // the configuration contradicts itself or the cluster
	codeNamespace   = 8   // no such network namespace, or the machine's own
	codeLater       = 11  // the same request may succeed later
	codeUnavailable = 50  // STATUS: no pod can be attached
	codeConflict    = 100 // collides with what is there: a name, an address
	codeDenied      = 101 // the plugin does not run as root
	codeInternal    = 999
)

// failure is an error as the specification wants it on stdout.
type failure struct {
	CNIVersion string `json:"cniVersion"`
	Code       uint   `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

func (f *failure) Error() string {
	if f.Details == "" {
		return f.Msg
	}
	return f.Msg + ": " + f.Details
}

func refuse(code uint, msg, details string) error {
	return &failure{Code: code, Msg: msg, Details: details}
}

// explain makes the error for the runtime: the daemon's sentence as the message, its cause and hint as the details.
func explain(command, spoken string, err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		f.CNIVersion = spoken
		return f
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		err = &control.Error{Code: control.Timeout, Message: "weft did not answer in time", Hint: "Its log says what it is doing"}
	}
	e := control.Explain(err)
	f = &failure{CNIVersion: spoken, Code: code(command, e.Code), Msg: "weft: " + e.Message, Details: e.Hint}
	switch {
	case e.Cause != "" && e.Hint != "":
		f.Details = fmt.Sprintf("%s. %s", e.Cause, e.Hint)
	case e.Cause != "":
		f.Details = e.Cause
	}
	return f
}

func code(command string, c control.Code) uint {
	switch c {
	case control.Unreachable, control.NotReady, control.NoQuorum, control.Busy, control.Timeout:
		if command == "STATUS" {
			return codeUnavailable
		}
		return codeLater
	case control.Usage:
		return codeConfig
	case control.NotFound:
		if command == "CHECK" {
			return codeUnknown
		}
		return codeNamespace
	case control.Conflict:
		return codeConflict
	case control.Denied:
		return codeDenied
	case control.Failed, control.Unsupported:
	}
	return codeInternal
}
