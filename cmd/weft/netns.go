package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"weft/prog/control"
)

// guessNetns turns a path, the name of a namespace that `ip netns` made, or the ID of a process into an absolute path.
// It does not mind if there is no such namespace any more: what is gone must still be detachable.
func (a *app) guessNetns(arg string) string {
	if strings.Contains(arg, "/") {
		path, err := filepath.Abs(arg)
		if err != nil { // no working directory: the daemon will say what it thinks of a relative path
			return arg
		}
		// To the daemon, "self" is the daemon.
		if rest, ok := strings.CutPrefix(path, "/proc/self/"); ok {
			return fmt.Sprintf("/proc/%d/%s", os.Getpid(), rest)
		}
		return path
	}
	named := filepath.Join(a.netns, arg)
	if _, err := os.Stat(named); err != nil && isNumber(arg) {
		return "/proc/" + arg + "/ns/net"
	}
	return named
}

// findNetns is guessNetns for a namespace that must exist.
func (a *app) findNetns(arg string) (string, error) {
	path := a.guessNetns(arg)
	_, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", &control.Error{
			Code: control.NotFound, Message: "there is no network namespace " + path,
			Hint: "NETNS is a path, a name that `ip netns list` shows, or the ID of a process",
		}
	case errors.Is(err, fs.ErrPermission):
		return "", &control.Error{Code: control.Denied, Message: "cannot look at " + path, Cause: "permission denied"}
	case err != nil:
		return "", fmt.Errorf("look at namespace: %w", err)
	}
	return path, nil
}

func isNumber(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
