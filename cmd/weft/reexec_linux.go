package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// hideToken starts this program again in the same process, with the token on standard input and "-" in its place on
// the command line. The process keeps its ID, so whoever supervises it notices nothing. It returns only on failure.
func hideToken(token string) error {
	argv := slices.Clone(os.Args)
	for i := range argv {
		argv[i] = strings.ReplaceAll(argv[i], token, "-")
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	// A token is far smaller than a pipe's buffer, so this does not wait for a reader.
	if _, err := w.WriteString(token + "\n"); err != nil {
		return fmt.Errorf("fill pipe: %w", err)
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("fill pipe: %w", err)
	}
	if err := unix.Dup3(int(r.Fd()), 0, 0); err != nil {
		return fmt.Errorf("move pipe to standard input: %w", err)
	}
	return fmt.Errorf("start again: %w", unix.Exec("/proc/self/exe", argv, os.Environ()))
}
