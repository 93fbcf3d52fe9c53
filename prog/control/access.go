package control

import (
	"context"
	"fmt"
	"net"
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
func withAccess(ctx context.Context, conn net.Conn, group int64) context.Context {
	have := accessNone
	if u, ok := conn.(*net.UnixConn); ok {
		if c, err := callerOf(u); err == nil {
			have = judge(c, group)
		}
	}
	return context.WithValue(ctx, accessKey{}, have)
}

// allow returns the refusal, nil when the caller may do what need says. Without a mark nothing is allowed.
func allow(ctx context.Context, need access, group string) error {
	have, _ := ctx.Value(accessKey{}).(access)
	switch {
	case have >= need:
		return nil
	case have == accessRead:
		return &Error{Code: Denied, Message: fmt.Sprintf("only root may do that; members of group %s may look", group)}
	}
	return &Error{Code: Denied, Message: fmt.Sprintf("only root and members of group %s may talk to weft", group)}
}
