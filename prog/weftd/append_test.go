package weftd

import (
	"bytes"
	"os"
	"testing"

	"weft/mesh"
)

var _ mesh.Appender = (*stateDir)(nil)

func TestStateGrowsAtItsEnd(t *testing.T) {
	s, err := openState(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.close() }()
	if err := s.Append(fileRoster, 0, []byte("x")); err == nil {
		t.Error("added to what was never written")
	}
	if err := s.Save(fileRoster, []byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := s.Append(fileRoster, 3, []byte(" two")); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{3, 8} {
		if err := s.Append(fileRoster, size, []byte("!")); err == nil {
			t.Errorf("added to %d bytes where there are 7", size)
		}
	}
	if b, err := s.Load(fileRoster); err != nil || !bytes.Equal(b, []byte("one two")) {
		t.Errorf("%q, %v", b, err)
	}
	if info, err := os.Stat(s.file(fileRoster)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}
