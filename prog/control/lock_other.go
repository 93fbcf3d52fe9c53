//go:build !linux

package control

import (
	"errors"
	"os"
)

// lock is not supported on this system.
func lock(*os.File) (bool, error) {
	return false, errors.New("lock socket: not supported on this system")
}

// locked is not supported on this system.
func locked(*os.File) (bool, error) {
	return false, errors.New("ask for lock: not supported on this system")
}
