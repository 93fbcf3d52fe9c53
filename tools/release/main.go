// Command release compiles weft for every architecture and puts what people download into a folder: archives, packages,
// images, bills of materials, checksums. What is in them is prog/release's; here is how programs are compiled, and what
// deb and rpm want. The same commit gives the same bytes in any folder on any machine with the same Go.
package main

import (
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"weft/prog/release"
)

func main() {
	root := flag.String("root", ".", "root of the repository")
	out := flag.String("o", "dist", "folder for the artefacts; what is in there is replaced")
	version := flag.String("version", "", "such as v0.1.0 (default: the tag of the commit, else v0.0.0 and the commit)")
	arches := flag.String("arch", "amd64,arm64", "architectures, as Go names them")
	flag.Parse()
	if err := run(*root, *out, *version, strings.Split(*arches, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func run(root, out, version string, arches []string) error {
	at, err := commitTime(root)
	if err != nil {
		return err
	}
	if version == "" {
		version = tagged(root)
	}
	work, err := os.MkdirTemp("", "weft-release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work) //nolint:errcheck // what is left is in the temporary folder
	// The pages and completions are printed by a weft that runs here, of whatever architecture.
	speaker := filepath.Join(work, "speaker", "weft")
	if err := compile(root, filepath.Dir(speaker), version, runtime.GOARCH, "weft"); err != nil {
		return err
	}
	var artefacts []release.File
	for _, arch := range arches {
		bin := filepath.Join(work, arch)
		if err := compile(root, bin, version, arch, programs(root)...); err != nil {
			return err
		}
		b, err := release.Collect(root, bin, speaker, release.Build{Version: version, Arch: arch, Time: at})
		if err != nil {
			return err
		}
		made, err := artefactsOf(b)
		if err != nil {
			return err
		}
		artefacts = append(artefacts, made...)
		if len(artefacts) == len(made) {
			artefacts = append(artefacts, *b.File("weft-join.sh"))
		}
	}
	artefacts = append(artefacts, release.File{Name: "SHA256SUMS", Mode: 0o644, Data: release.Sums(artefacts)})
	if err := errors.Join(os.RemoveAll(out), os.MkdirAll(out, 0o755)); err != nil {
		return err
	}
	for _, a := range artefacts {
		path := filepath.Join(out, a.Name)
		if err := os.WriteFile(path, a.Data, cmp.Or(a.Mode, 0o644)); err != nil {
			return err
		}
		fmt.Printf("  %s  %.1f MiB\n", path, float64(len(a.Data))/(1<<20))
	}
	return nil
}

// artefactsOf makes all files of one architecture.
func artefactsOf(b release.Build) (out []release.File, err error) {
	for _, a := range []struct {
		name string
		make func() ([]byte, error)
	}{
		{b.ArchiveName(), b.Archive},
		{b.ImageName(), b.Image},
		{b.BOMName(), b.BOM},
		{packageName(b, "deb"), func() ([]byte, error) { return pack(b, "deb") }},
		{packageName(b, "rpm"), func() ([]byte, error) { return pack(b, "rpm") }},
	} {
		data, err := a.make()
		if err != nil {
			return nil, fmt.Errorf("make %s: %w", a.name, err)
		}
		out = append(out, release.File{Name: a.name, Data: data})
	}
	return out, nil
}

// programs are those of the repository that a release holds.
func programs(root string) (names []string) {
	for _, name := range release.Programs() {
		if _, err := os.Stat(filepath.Join(root, "cmd", name)); err == nil {
			names = append(names, name)
		}
	}
	return names
}

// compile builds static programs in which nothing tells where and when.
func compile(root, bin, version, arch string, names ...string) error {
	for _, name := range names {
		cmd := exec.Command("go", "build", "-trimpath", "-tags=nethttpomithttp2,urfave_cli_no_docs", "-buildvcs=false", "-ldflags=-s -w -buildid= -X main.release="+version,
			"-o", mustAbs(filepath.Join(bin, name)), "./cmd/"+name)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=", "GOAMD64=v1", "GOARM64=v8.0")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("compile %s for %s: %w\n%s", name, arch, err, out.String())
		}
	}
	return nil
}

func mustAbs(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	return abs
}

// commitTime is what all files are dated; SOURCE_DATE_EPOCH says it where there is no commit to ask.
func commitTime(root string) (time.Time, error) {
	s := os.Getenv("SOURCE_DATE_EPOCH")
	if s == "" {
		out, err := git(root, "log", "-1", "--format=%ct")
		if err != nil {
			return time.Time{}, fmt.Errorf("find the time of the commit: %w; without git, set SOURCE_DATE_EPOCH", err)
		}
		s = out
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("read the time of the commit: %w", err)
	}
	return time.Unix(n, 0).UTC(), nil
}

// tagged is the version that git knows; a package manager takes what lies between releases for older than the next one.
func tagged(root string) string {
	if tag, err := git(root, "describe", "--tags", "--exact-match"); err == nil {
		return tag
	}
	if commit, err := git(root, "rev-parse", "--short=12", "HEAD"); err == nil {
		return "v0.0.0-" + commit
	}
	return "v0.0.0"
}

func git(root string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir = root
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}
