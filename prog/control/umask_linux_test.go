package control

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Members of the group reach the socket whatever umask the daemon was started under; a folder that was there is left as it is.
func TestTheFolderOfTheSocketIsOpenUnderAnyUmask(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o077} {
		before := syscall.Umask(umask)
		top := t.TempDir()
		made, closed := filepath.Join(top, "made"), filepath.Join(top, "closed")
		if err := os.Mkdir(closed, 0o700); err != nil {
			t.Fatal(err)
		}
		for dir, want := range map[string]fs.FileMode{made: 0o755, closed: 0o700} {
			s, err := Listen(Config{Path: filepath.Join(dir, "s")})
			if err != nil {
				t.Fatal(err)
			}
			st, err := os.Stat(dir)
			if err != nil || st.Mode().Perm() != want {
				t.Errorf("umask %o: %s is %o, want %o", umask, dir, st.Mode().Perm(), want)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		syscall.Umask(before)
	}
}
