package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// capable says why this process may not administer the network, nil when it may.
func capable() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	switch {
	case data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0:
		return nil
	case os.Geteuid() == 0:
		return errors.New("root without CAP_NET_ADMIN")
	}
	return errors.New("no CAP_NET_ADMIN")
}
