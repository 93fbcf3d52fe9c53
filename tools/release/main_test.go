package main

import (
	"bytes"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// copyTree copies what git would commit to another folder.
func copyTree(t *testing.T, to string) {
	t.Helper()
	list := exec.Command("git", "ls-files", "-co", "--exclude-standard", "-z")
	list.Dir = "../.."
	names, err := list.Output()
	if err != nil {
		t.Skip("there is no git to ask what belongs to the repository:", err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(names), "\x00"), "\x00") {
		from, dest := filepath.Join("../..", name), filepath.Join(to, name)
		info, err := os.Stat(from)
		if os.IsNotExist(err) { // deleted, and not committed yet
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(dest), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dest, b, info.Mode()); err != nil {
			t.Fatal(err)
		}
	}
}

func artefacts(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all[d.Name()], err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Two releases from two folders, at two times, with caches of their own, are the same, byte for byte.
func TestReleaseIsReproducible(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	var made []map[string][]byte
	for _, folder := range []string{"a", "some/where/else"} {
		top := t.TempDir()
		root, out := filepath.Join(top, folder), filepath.Join(top, "dist")
		copyTree(t, root)
		t.Setenv("GOCACHE", filepath.Join(top, "cache"))
		if err := run(root, out, "v0.1.0", []string{"amd64", "arm64"}); err != nil {
			t.Fatal(err)
		}
		made = append(made, artefacts(t, out))
	}
	names := slices.Sorted(maps.Keys(made[0]))
	if got := slices.Sorted(maps.Keys(made[1])); !slices.Equal(names, got) {
		t.Fatalf("the artefacts are %q and %q", names, got)
	}
	for _, name := range names {
		if !bytes.Equal(made[0][name], made[1][name]) {
			t.Errorf("%s differs", name)
		}
	}
	for _, want := range []string{
		"SHA256SUMS", "weft-join.sh", "weft-linux-amd64.tar.gz", "weft-linux-arm64.tar.gz", "weft-linux-amd64.deb",
		"weft-linux-arm64.deb", "weft-linux-x86_64.rpm", "weft-linux-aarch64.rpm", "weft-image-amd64.tar", "weft-linux-amd64.cdx.json",
	} {
		if !slices.Contains(names, want) {
			t.Errorf("there is no %s", want)
		}
	}
	t.Logf("%d artefacts, the same twice:\n%s", len(names), made[0]["SHA256SUMS"])
}
