//go:build !linux

package main

// hideToken does nothing here: the daemon, which would show the token for as long as it runs, runs on Linux only.
func hideToken(string) error { return nil }
