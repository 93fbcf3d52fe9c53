package control

import (
	"context"
	"fmt"
	"os"
)

// caller is who is at the other end of a connection, by the word of the kernel.
type caller struct {
	pid    int
	uid    uint32
	groups []uint32 // primary and supplementary
}

// access is what a caller may do.
type access uint8

const (
	accessNone access = iota
	accessRead
	accessChange
)

// judge gives root and the daemon's own user everything, members of the group reading, all others nothing. group is
// negative when there is no such group.
func judge(c caller, group int64) access {
	if c.uid == 0 || int64(c.uid) == int64(os.Geteuid()) {
		return accessChange
	}
	for _, g := range c.groups {
		if int64(g) == group {
			return accessRead
		}
	}
	return accessNone
}

type accessKey struct{}

// withAccess marks a connection's context, once, when it is accepted: credentials cannot change afterwards.
func withAccess(ctx context.Context, a access) context.Context {
	return context.WithValue(ctx, accessKey{}, a)
}

// accessOf reads the mark. Without one nothing is allowed.
func accessOf(ctx context.Context) access {
	a, _ := ctx.Value(accessKey{}).(access)
	return a
}

// allow returns the refusal, nil when the caller may do what need says.
func allow(ctx context.Context, need access, group string) error {
	switch have := accessOf(ctx); {
	case have >= need:
		return nil
	case have == accessRead:
		return &Error{Code: Denied, Message: fmt.Sprintf("only root may do that; members of group %s may look", group)}
	}
	return &Error{Code: Denied, Message: fmt.Sprintf("only root and members of group %s may talk to weft", group)}
}

// quota bounds how much goes on at once, apart for those who may change things and for all others, so that no member of
// the group can keep root out.
type quota struct{ change, other chan struct{} }

func newQuota(n int) quota { return quota{make(chan struct{}, n), make(chan struct{}, n)} }

// take returns what gives the place back; false: there is none.
func (q quota) take(a access) (release func(), ok bool) {
	slots := q.other
	if a == accessChange {
		slots = q.change
	}
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, true
	default:
		return nil, false
	}
}
