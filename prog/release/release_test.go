package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// speaker stands for a weft that runs here: it prints its words.
const speaker = "#!/bin/sh\necho \"$@\"\n"

// collect makes a build of programs that are none.
func collect(t *testing.T) Build { return collectOf(t, []byte("a program")) }

func collectOf(t *testing.T, program []byte) Build {
	t.Helper()
	bin := t.TempDir()
	for name, data := range map[string][]byte{"weft": program, "speaker": []byte(speaker)} {
		if err := os.WriteFile(filepath.Join(bin, name), data, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	b, err := Collect("../..", bin, filepath.Join(bin, "speaker"), Build{Version: "v1.2.3", Arch: "amd64", Time: time.Unix(1700000000, 0)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// unpack lists what is in a tar.
func unpack(t *testing.T, r io.Reader) (names []string, files map[string][]byte) {
	t.Helper()
	files = map[string][]byte{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return names, files
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.ModTime.Unix() != 1700000000 {
			t.Errorf("%s belongs to %d:%d %q and is of %v", h.Name, h.Uid, h.Gid, h.Uname, h.ModTime)
		}
		names, files[h.Name] = append(names, fmt.Sprintf("%s %v", h.Name, h.FileInfo().Mode())), b
	}
}

func gunzip(t *testing.T, b []byte) io.Reader {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func TestArchiveHoldsWhatTheScriptInstalls(t *testing.T) {
	b := collect(t)
	archive, err := b.Archive()
	if err != nil {
		t.Fatal(err)
	}
	names, files := unpack(t, gunzip(t, archive))
	for _, want := range []string{
		"weft -rwxr-xr-x", "weft-join.sh -rwxr-xr-x", "systemd/ drwxr-xr-x", "systemd/weft-wire.service -rw-r--r--",
		"openrc/weft -rwxr-xr-x", "man/weft.1 -rw-r--r--", "completion/_weft -rw-r--r--", "10-weft.conflist -rw-r--r--",
	} {
		if !slices.Contains(names, want) {
			t.Errorf("there is no %q in %q", want, names)
		}
	}
	if got := string(files["completion/weft.fish"]); got != "completion fish\n" {
		t.Errorf("the completion of fish is %q", got)
	}
	if !json.Valid(files["10-weft.conflist"]) {
		t.Errorf("the CNI configuration is no JSON:\n%s", files["10-weft.conflist"])
	}
}

// The script reads no other files from an archive than there are, and all of these.
func TestScriptKnowsTheArchive(t *testing.T) {
	script, err := os.ReadFile("../join/weft-join.sh")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range collect(t).Files {
		dir, base := filepath.Split(f.Name)
		if base == "LICENSE" || base == "CHANGELOG.md" {
			continue
		}
		if s := string(script); !strings.Contains(s, "$release/"+f.Name) && !strings.Contains(s, "$release/"+dir+"$") &&
			!strings.Contains(s, "$release\"/"+dir+"*") {
			t.Errorf("the script does not install %s", f.Name)
		}
	}
}

func TestTheSameFilesGiveTheSameBytes(t *testing.T) {
	b := collect(t)
	for _, make := range []func() ([]byte, error){b.Archive, b.Image} {
		first, err := make()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := make(); err != nil || !bytes.Equal(first, again) {
			t.Errorf("two runs differ: %d and %d bytes, %v", len(first), len(again), err)
		}
	}
}

// Every blob of the image has the digest and the size that others know it by.
func TestImageIsWellFormed(t *testing.T) {
	b := collect(t)
	image, err := b.Image()
	if err != nil {
		t.Fatal(err)
	}
	_, files := unpack(t, bytes.NewReader(image))
	blob := func(d descriptor) []byte {
		t.Helper()
		data, ok := files["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
		if !ok || len(data) != d.Size || digest(data) != d.Digest {
			t.Fatalf("blob %s: there %v, %d bytes, want %d", d.Digest, ok, len(data), d.Size)
		}
		return data
	}
	var index imageIndex
	var manifest imageManifest
	var config imageConfig
	decode(t, files["index.json"], &index)
	decode(t, blob(index.Manifests[0]), &manifest)
	decode(t, blob(manifest.Config), &config)
	layer := blob(manifest.Layers[0])
	plain, err := io.ReadAll(gunzip(t, layer))
	if err != nil {
		t.Fatal(err)
	}
	if config.RootFS.DiffIDs[0] != digest(plain) || config.Architecture != "amd64" {
		t.Errorf("the configuration is %+v", config)
	}
	names, _ := unpack(t, bytes.NewReader(plain))
	if diff := cmp.Diff([]string{"usr/ drwxr-xr-x", "usr/bin/ drwxr-xr-x", "usr/bin/weft -rwxr-xr-x"}, names); diff != "" {
		t.Errorf("in the image (-want +got):\n%s", diff)
	}
	var docker []dockerManifest
	decode(t, files["manifest.json"], &docker)
	if docker[0].RepoTags[0] != "weft:v1.2.3" || files[docker[0].Config] == nil || files[docker[0].Layers[0]] == nil {
		t.Errorf("docker's manifest is %+v", docker)
	}
}

func decode(t *testing.T, b []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
}

func TestBOMListsWhatIsLinked(t *testing.T) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	out, err := collectOf(t, self).BOM()
	if err != nil {
		t.Fatal(err)
	}
	var doc bom
	decode(t, out, &doc)
	has := func(name string) bool {
		return slices.ContainsFunc(doc.Components, func(c component) bool { return c.Name == name && c.Version != "" })
	}
	if doc.Format != "CycloneDX" || !has("std") { // nothing else is written into a test
		t.Errorf("the bill says %s", out)
	}
}

func TestSumsAreThoseOfSha256sum(t *testing.T) {
	got := string(Sums([]File{{Name: "b", Data: []byte("weft")}, {Name: "a"}}))
	want := "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  a\n"
	if !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "  b\n") {
		t.Errorf("got\n%s", got)
	}
}
