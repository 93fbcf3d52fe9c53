//go:build !linux

package main

import "errors"

// capable is not supported on this system.
func capable() error { return errors.New("not supported on this system") }
