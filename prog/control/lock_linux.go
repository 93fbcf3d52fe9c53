package control

import (
	"errors"
	"os"
	"syscall"
)

// Locks of an open file description: unlike those of flock(2) they can be asked about without being taken, so that
// waiting for a daemon's end never stands in the way of the next one's start.
const (
	ofdGetLock = 36
	ofdSetLock = 37
)

// lock takes an exclusive lock on f, which the kernel drops with the last descriptor; false: another process has it.
func lock(f *os.File) (bool, error) {
	err := syscall.FcntlFlock(f.Fd(), ofdSetLock, &syscall.Flock_t{Type: syscall.F_WRLCK})
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
		return false, nil
	}
	return err == nil, err
}

// locked reports whether somebody else holds the lock on f.
func locked(f *os.File) (bool, error) {
	l := syscall.Flock_t{Type: syscall.F_WRLCK}
	err := syscall.FcntlFlock(f.Fd(), ofdGetLock, &l)
	return l.Type != syscall.F_UNLCK, err
}
