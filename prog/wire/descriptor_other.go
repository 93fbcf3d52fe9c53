//go:build !linux

package wire

import (
	"fmt"
	"net"
	"os"
	"syscall"

	"weft/router"
)

var errPlatform = fmt.Errorf("run a data-plane process: %w", router.ErrUnsupported)

func rightsSpace(int) int { return 0 }

func rights([]int) []byte { return nil }

func parseRights([]byte, int) ([]int, error) { return nil, errPlatform }

func duplicate(syscall.Conn) (int, error) { return -1, errPlatform }

func duplicateFD(int) (int, error) { return -1, errPlatform }

func closeFDs([]int) {}

func pollable(int, string) (*os.File, error) { return nil, errPlatform }

func orphaned(int) bool { return false }

func credentials(*net.UnixConn) (pid int, uid uint32, err error) { return 0, 0, errPlatform }

func sign(syscall.Conn) error { return errPlatform }

func closeInherited(int) {}
