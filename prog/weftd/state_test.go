package weftd

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func openTestState(t *testing.T, path string) *stateDir {
	t.Helper()
	s := must(openState(path))(t)
	t.Cleanup(func() { _ = s.close() }) // it may be closed
	return s
}

func TestStateIsOurs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "state")
	if err := os.MkdirAll(path, 0o755); err != nil { // somebody else made it
		t.Fatal(err)
	}
	s := openTestState(t, path)
	key := must(s.keyOrNew(fileIdentity))(t)
	must(s.noiseKey())(t)
	must(s.wireEpoch(true))(t)
	if err := s.Save("roster", []byte("x")); err != nil {
		t.Fatal(err)
	}
	mode := func(name string) fs.FileMode { return must(os.Stat(name))(t).Mode().Perm() }
	if got := mode(path); got != 0o700 {
		t.Errorf("folder %o", got)
	}
	for _, e := range must(os.ReadDir(path))(t) {
		if got := mode(filepath.Join(path, e.Name())); got != 0o600 {
			t.Errorf("%s is %o", e.Name(), got)
		}
	}
	if again := must(s.keyOrNew(fileIdentity))(t); again.ID() != key.ID() {
		t.Error("the key changed")
	}
	var inUse *stateInUseError
	if _, err := openState(path); !errors.As(err, &inUse) {
		t.Errorf("two daemons, one state: %v", err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	s = openTestState(t, path)
	if again := must(s.key(fileIdentity))(t); again.ID() != key.ID() {
		t.Error("the key is another after a restart")
	}
}

// TestStateCrash: a process that is killed while it writes leaves the old file or the new one, and what it had begun is
// swept away.
func TestStateCrash(t *testing.T) {
	path := t.TempDir()
	exe := must(os.Executable())(t)
	for range 5 {
		cmd := exec.Command(exe, "write", path)
		out := must(cmd.StdoutPipe())(t)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil { // it has written once
			t.Fatal(err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
		s := must(openState(path))(t)
		b := must(s.read("records"))(t)
		if len(b) == 0 || len(bytes.TrimRight(b, string(b[:1]))) != 0 || len(b) != int(b[0])<<10 {
			t.Fatalf("%d bytes of %q", len(b), b[:1])
		}
		for _, e := range must(os.ReadDir(path))(t) {
			if e.Name() != "records" && e.Name() != fileLock {
				t.Errorf("%s is left", e.Name())
			}
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
	}
}

// writeForever replaces a file by one of n KiB of the byte n, again and again.
func writeForever(path string) error {
	s, err := openState(path)
	if err != nil {
		return err
	}
	for n := 1; ; n = n%100 + 1 {
		if err := s.write("records", bytes.Repeat([]byte{byte(n)}, n<<10)); err != nil {
			return err
		}
		fmt.Fprint(os.Stdout, ".")
	}
}

// TestStateWriteFails: the old file stays, and no half of a new one.
func TestStateWriteFails(t *testing.T) {
	s := openTestState(t, t.TempDir())
	if err := os.Mkdir(s.file("records"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.write("records", []byte("x")); err == nil {
		t.Fatal("a folder was replaced")
	}
	if left := must(os.ReadDir(s.path))(t); len(left) != 2 {
		t.Errorf("left: %v", left)
	}
}

func TestWireEpochNeverFalls(t *testing.T) {
	s := openTestState(t, t.TempDir())
	var last uint64
	for i, next := range []bool{false, false, true, true, false, true} {
		n := must(s.wireEpoch(next))(t)
		if n < last || n == 0 || next && i > 0 && n == last {
			t.Errorf("epoch %d after %d", n, last)
		}
		last = n
	}
	if err := s.write(fileWireEpoch, []byte("many\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.wireEpoch(true); err == nil {
		t.Error("nonsense counts as none: handshake counters would begin anew")
	}
}

func TestForgetAndPurge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	s := openTestState(t, path)
	life, rest := stateFiles()
	for _, name := range slices.Concat(life, rest, []string{"wire.sock.lock", "wire.sock.next", ".identity.key.123", ".undo-9"}) {
		if name != fileLock {
			if err := os.WriteFile(s.file(name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.forget("root.key.c1"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.read("root.key.c1"); err != nil {
		t.Errorf("the root key of a cluster that lives on is not kept: %v", err)
	}
	for _, name := range life {
		if _, err := s.read(name); !errors.Is(err, errNoState) {
			t.Errorf("%s is not forgotten: %v", name, err)
		}
	}
	if _, err := s.read(fileUndo); err != nil {
		t.Errorf("what the machine had before is forgotten too: %v", err)
	}
	if err := os.WriteFile(s.file("holiday.jpg"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.purge(); err == nil || err.Error() != path+" stays, for what is in it is not weft's: holiday.jpg" {
		t.Errorf("purge beside another's file: %v", err)
	}
	if left := must(os.ReadDir(path))(t); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	if err := os.Remove(s.file("holiday.jpg")); err != nil {
		t.Fatal(err)
	}
	if err := s.purge(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is left: %v", err)
	}
}

func TestKeysThatAreNone(t *testing.T) {
	s := openTestState(t, t.TempDir())
	must(s.noiseKey())(t)
	noise := must(s.read(fileNoise))(t)
	for name, b := range map[string][]byte{"not PEM": []byte("x"), "another kind": noise, "torn": noise[:60]} {
		if err := s.write(fileIdentity, b); err != nil {
			t.Fatal(err)
		}
		if _, err := s.keyOrNew(fileIdentity); err == nil || !strings.Contains(err.Error(), s.file(fileIdentity)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.write(fileNoise, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.noiseKey(); err == nil {
		t.Error("a damaged sleeve key is replaced without a word")
	}
}
