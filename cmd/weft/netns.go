package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"weft/prog/control"
)

// netns is a network namespace as people name it.
type netns struct {
	path string // absolute
	name string // what to call the container in it when nobody says
}

// guessNetns reads a path, the name of a namespace that `ip netns` made, or the ID of a process. It does not mind if
// there is no such namespace any more: what is gone must still be detachable.
func (a *app) guessNetns(arg string) netns {
	if strings.Contains(arg, "/") {
		path, err := filepath.Abs(arg)
		if err != nil { // no working directory: the daemon will say what it thinks of a relative path
			path = arg
		}
		// To the daemon, "self" is the daemon.
		if rest, ok := strings.CutPrefix(path, "/proc/self/"); ok {
			path = fmt.Sprintf("/proc/%d/%s", os.Getpid(), rest)
		}
		name := filepath.Base(path)
		if pid, ok := strings.CutSuffix(strings.TrimPrefix(path, "/proc/"), "/ns/net"); ok && isNumber(pid) {
			name = "pid-" + pid
		}
		return netns{path: path, name: name}
	}
	named := filepath.Join(a.netns, arg)
	if _, err := os.Stat(named); err != nil && isNumber(arg) {
		return netns{path: "/proc/" + arg + "/ns/net", name: "pid-" + arg}
	}
	return netns{path: named, name: arg}
}

// findNetns is guessNetns for a namespace that must exist.
func (a *app) findNetns(arg string) (netns, error) {
	ns := a.guessNetns(arg)
	if _, err := os.Stat(ns.path); err != nil {
		e := &control.Error{Code: control.NotFound, Message: fmt.Sprintf("there is no network namespace %s", ns.path),
			Hint: "NETNS is a path, a name that `ip netns list` shows, or the ID of a process"}
		if !os.IsNotExist(err) {
			e.Code, e.Message, e.Cause = control.Denied, "cannot look at "+ns.path, "permission denied"
		}
		return netns{}, e
	}
	return ns, nil
}

func isNumber(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
