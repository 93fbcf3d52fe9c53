package cluster

import (
	"errors"
	"fmt"
	"strings"
)

// Result is what a command left behind.
type Result struct {
	Stdout, Stderr string
	Code           int // exit code; -1: it did not end by itself
}

// Words are the last line of stderr, which is the sentence of a failure.
func (r Result) Words() string {
	lines := strings.Split(strings.TrimRight(r.Stderr, "\n"), "\n")
	return lines[len(lines)-1]
}

// Type runs a command as a person on that machine would, whatever comes of it.
func (m *Machine) Type(args ...string) Result { return m.TypeEnv(nil, args...) }

// TypeEnv is Type with more environment variables.
func (m *Machine) TypeEnv(env []string, args ...string) Result {
	c := m.Command(m.Weft, args...).Env("WEFT_SOCKET="+m.Socket(), "WEFT_STATE="+m.State()).Env(env...).Quiet()
	if err := c.Start(); err != nil {
		return Result{Stderr: err.Error(), Code: -1}
	}
	<-c.Done()
	return Result{Stdout: c.Stdout(), Stderr: c.Stderr(), Code: c.ExitCode()}
}

// Failure makes an error of a command that should have succeeded.
func (r Result) Failure() error {
	if r.Code == 0 {
		return nil
	}
	return fmt.Errorf("exit %d: %w", r.Code, errors.New(r.Words()))
}
