package weftd

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"syscall"

	"weft/crypto/tlv"
	"weft/ipam"
	"weft/mesh/join"
	"weft/prog/control"
	"weft/router"
	"weft/router/host"
)

// explain makes a sentence for people of an error of the parts.
func explain(err error) error {
	var told *control.Error
	var refused *join.Error
	var inUse *stateInUseError
	var newer *tlv.VersionError
	var name *host.IfNameError
	var namespace *host.NetNSError
	switch {
	case err == nil || errors.As(err, &told):
		return err
	case errors.Is(err, ipam.ErrNoAddress), errors.Is(err, ipam.ErrNotReady), errors.Is(err, router.ErrNotReady):
		return &control.Error{Code: control.NotReady, Message: err.Error()}
	case errors.Is(err, ipam.ErrTaken), errors.Is(err, ipam.ErrNotOurs):
		return &control.Error{Code: control.Conflict, Message: err.Error()}
	case errors.Is(err, ipam.ErrBadRequest):
		return &control.Error{Code: control.Usage, Message: err.Error()}
	case errors.As(err, &name):
		return &control.Error{Code: control.Conflict, Message: name.Error()}
	case errors.As(err, &namespace):
		return &control.Error{Code: control.NotFound, Message: namespace.Error()}
	case errors.As(err, &refused):
		code := control.Failed
		switch refused.Code {
		case join.CodeNoQuorum:
			code = control.NoQuorum
		case join.CodeNotToken, join.CodeTruncated:
			code = control.Usage
		case join.CodeBusy:
			code = control.Busy
		}
		return &control.Error{Code: code, Message: refused.Sentence, Cause: refused.Cause, Hint: refused.Hint}
	case errors.As(err, &inUse):
		return &control.Error{
			Code: control.Conflict, Message: inUse.Error(),
			Hint: "Is it running? Try: weft status; or give this one its own --state and --socket",
		}
	case errors.As(err, &newer):
		return &control.Error{
			Code: control.Unsupported, Message: "this state was written by a newer weft", Cause: err.Error(),
			Hint: "Start that version again; to begin a new life instead, move the state directory away",
		}
	}
	return err
}

// stateError is about the state directory as a whole.
func stateError(path, what string, err error) error {
	e := &control.Error{Code: control.Failed, Message: fmt.Sprintf("cannot %s the state directory %s", what, path), Cause: rootCause(err)}
	switch {
	case errors.Is(err, fs.ErrPermission):
		e.Code, e.Hint = control.Denied, "weft needs root. Try: sudo weft up"
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.ENOTDIR):
		e.Hint = "Choose another one: --state DIR"
	case errors.Is(err, syscall.ENOSPC):
		e.Hint = "Make room on that disk"
	}
	return e
}

// portError says which port cannot be opened, who has it, and which flag moves it.
func portError(network string, at netip.AddrPort, flag string, err error) error {
	e := &control.Error{
		Code: control.Failed, Message: fmt.Sprintf("cannot open %s port %d", strings.ToUpper(network), at.Port()), Cause: rootCause(err),
		Hint: fmt.Sprintf("Choose another address with --%s", flag),
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		e.Code, e.Cause = control.Conflict, "another program has it"
		e.Hint = fmt.Sprintf("Stop that program, or choose another port with --%s", flag)
		if p, ok := portHolder(network, at.Port()); ok {
			e.Cause = p.String() + " has it"
			if p.wire {
				e.Hint = fmt.Sprintf("It is a data plane whose state directory is another, or is gone. Try: kill %d", p.pid)
			}
		}
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		e.Cause = at.Addr().String() + " is no address of this machine"
	}
	return e
}

// rootCause is the innermost reason, without the words that repeat what was tried.
func rootCause(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err.Error()
		}
		err = next
	}
}

// nobodyListens reports whether a dial of a socket failed because there is nobody.
func nobodyListens(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}
