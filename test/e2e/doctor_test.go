package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"weft/prog/control"
	"weft/test/cluster"
	"weft/test/netlab"
)

// decode reads a document from a command that may have failed, as doctor does when a check did.
func decode(r cluster.Result, into any) error {
	if err := json.Unmarshal([]byte(r.Stdout), into); err != nil {
		return fmt.Errorf("%w: %s", err, r.Stderr)
	}
	return nil
}

// What doctor says where nothing but TCP passes, and of a data plane that hangs or is gone: on this machine, and on the other one.
func TestDoctorNamesTheCause(t *testing.T) {
	t.Parallel() // it mostly waits
	w := walkAround(t, netlab.Public, netlab.Public, netlab.OnlyTCP)
	w.form("--transport", "sleeve")
	p, q, a := w.machines[0], w.machines[1], w.machines[2]
	w.awaitPath(p, "a", control.PathTCP, "")
	w.awaitPath(a, "p", control.PathTCP, "")
	w.advice(p, "a", "UDP does not pass at a: let it out of that network to port 6783, and its answers in")
	w.advice(a, "p", "UDP does not pass at a: ")
	w.advice(p, "q", "p and q reach each other directly")

	wire := q.Wire()
	w.must(syscall.Kill(wire, syscall.SIGSTOP))
	t.Cleanup(func() { _ = syscall.Kill(wire, syscall.SIGCONT) }) // or it outlives the lab
	w.advice(q, "p", "The data plane of q does not answer: if that lasts, kill the process weft wire")
	w.advice(p, "q", "q is not reached in any way: see whether weft runs there")
	w.must(syscall.Kill(wire, syscall.SIGKILL)) // as the sentence says
	w.advice(q, "p", "q and p reach each other directly")
	w.advice(p, "q", "p and q reach each other directly")

	// The daemon sleeps while its wire goes and something takes its place, so that no other wire can be started.
	w.must(q.Daemon.Signal(syscall.SIGSTOP))
	w.must(q.KillWire(w.within(startPatience)))
	place := filepath.Join(q.State(), "wire.sock")
	w.must(os.RemoveAll(place))
	w.must(os.MkdirAll(filepath.Join(place, "taken"), 0o700))
	w.must(q.Daemon.Signal(syscall.SIGCONT))
	w.advice(q, "p", "The data plane of q does not run (")
	st, err := q.WaitFor(w.within(startPatience), func(st control.Status) error {
		if !slices.ContainsFunc(st.Warnings, func(s string) bool { return strings.HasPrefix(s, "The data plane does not run: ") }) {
			return fmt.Errorf("warnings: %q", st.Warnings)
		}
		return nil
	})
	w.must(err)
	t.Logf("warnings of q: %q", st.Warnings)
	w.must(os.RemoveAll(place))
	w.advice(q, "p", "q and p reach each other directly")
}
