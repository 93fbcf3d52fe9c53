//go:build !linux

package wire

func dropPrivileges() error { return errPlatform }

func forbidGain() error { return errPlatform }
