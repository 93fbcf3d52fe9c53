package install

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// debian is a folder with the smallest Debian 12 that starts by itself and can fetch a file, made once and kept.
func debian(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	must(t, err)
	root := filepath.Join(cache, "weft-test", "bookworm")
	if _, err := os.Stat(root); err == nil {
		return root
	}
	if _, err := exec.LookPath("debootstrap"); err != nil {
		t.Fatal("debootstrap is missing. Try: apt-get install debootstrap")
	}
	must(t, os.MkdirAll(filepath.Dir(root), 0o755))
	part, err := os.MkdirTemp(filepath.Dir(root), "part-") //nolint:usetesting // renamed when whole: the same file system
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(part) })
	out, err := exec.CommandContext(t.Context(), "debootstrap", "--variant=minbase", "--include=systemd-sysv,iproute2,wget",
		"bookworm", filepath.Join(part, "root")).CombinedOutput()
	if err != nil {
		t.Fatalf("debootstrap: %v\n%s", err, out)
	}
	must(t, os.Rename(filepath.Join(part, "root"), root))
	return root
}
