// Package corpus keeps the inputs that fuzz targets start from under testdata/fuzz, where Go looks for them. What is in
// them, and when they are written anew, is left to the tests.
package corpus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Add gives f an input to start from and, with commit, writes it under its name.
func Add(f *testing.F, commit bool, name string, b []byte) {
	f.Helper()
	f.Add(b)
	if !commit {
		return
	}
	dir := filepath.Join("testdata", "fuzz", f.Name())
	text := fmt.Sprintf("go test fuzz v1\n[]byte(%q)\n", b)
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)); err != nil {
		f.Fatal(err)
	}
}
