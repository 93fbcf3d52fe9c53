//go:build !linux

package wire

import (
	"context"
	"net"
	"time"
)

const exitPatience = 2 * time.Second

type child struct{ pid int }

func startChild(Options, *net.UnixListener) (*child, error) { return nil, errPlatform }

func (c *child) failed(_ string, err error) error { return err }

func reap(int, time.Duration) (string, bool) { return "", false }

func kill(context.Context, int, string) error { return errPlatform }

func lock(context.Context, string) (func(), error) { return nil, errPlatform }
