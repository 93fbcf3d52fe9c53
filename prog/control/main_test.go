package control_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"

	"go.uber.org/goleak"
)

// heirEnv makes the test binary a daemon that is killed while it starts a process: its value is the socket.
const heirEnv = "WEFT_TEST_HEIR"

func TestMain(m *testing.M) {
	if path := os.Getenv(heirEnv); path != "" {
		if err := leaveHeir(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// leaveHeir ends with a child that still holds what this process listens on, and reads its own standard input to the end.
func leaveHeir(path string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		return err
	}
	heir := exec.Command("cat")
	heir.Stdin, heir.ExtraFiles = os.Stdin, []*os.File{f}
	return heir.Start()
}
