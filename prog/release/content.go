package release

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// File is one file of a release.
type File struct {
	Name string // in the archive, with slashes
	Mode fs.FileMode
	Data []byte
}

// Build is one release for one architecture.
type Build struct {
	Version string    // such as v0.1.0
	Arch    string    // as Go names it
	Time    time.Time // of all files; that of the commit, say
	Files   []File    // sorted by name
}

// programs are the executables that a release may hold; what is not built is left out.
var programs = [...]string{"weft", "weft-cni"}

// verbatim are the files that come from the repository as they are.
var verbatim = []struct {
	name, source string
	mode         fs.FileMode
}{
	{"weft-join.sh", "prog/join/weft-join.sh", 0o755},
	{"10-weft.conflist", "prog/join/10-weft.conflist", 0o644},
	{"systemd/weft.service", "prog/systemd/weft.service", 0o644},
	{"systemd/weft-wire.service", "prog/systemd/weft-wire.service", 0o644},
	{"systemd/weft-guard.service", "prog/systemd/weft-guard.service", 0o644},
	{"openrc/weft", "prog/openrc/weft", 0o755},
	{"openrc/weft-guard", "prog/openrc/weft-guard", 0o755},
	{"LICENSE", "LICENSE", 0o644},
	{"CHANGELOG.md", "CHANGELOG.md", 0o644},
}

// generated are the files that the program itself writes.
var generated = []struct {
	name string
	args []string
}{
	{"man/weft.1", []string{"manual", "weft.1"}},
	{"man/weft.yaml.5", []string{"manual", "weft.yaml.5"}},
	{"completion/weft.bash", []string{"completion", "bash"}},
	{"completion/_weft", []string{"completion", "zsh"}},
	{"completion/weft.fish", []string{"completion", "fish"}},
}

// Collect gathers a build: the executables in bin, files of the repository at root, and what speaker, a weft that runs on
// this machine, says about itself.
func Collect(root, bin, speaker string, b Build) (Build, error) {
	for _, name := range programs {
		data, err := os.ReadFile(filepath.Join(bin, name))
		if os.IsNotExist(err) && name != programs[0] {
			continue
		}
		if err != nil {
			return b, fmt.Errorf("collect program: %w", err)
		}
		b.Files = append(b.Files, File{name, 0o755, data})
	}
	for _, v := range verbatim {
		data, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(v.source)))
		if err != nil {
			return b, fmt.Errorf("collect file: %w", err)
		}
		b.Files = append(b.Files, File{v.name, v.mode, data})
	}
	for _, g := range generated {
		cmd := exec.Command(speaker, g.args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		data, err := cmd.Output()
		if err != nil {
			return b, fmt.Errorf("generate %s: %w: %s", g.name, err, strings.TrimSpace(stderr.String()))
		}
		b.Files = append(b.Files, File{g.name, 0o644, data})
	}
	slices.SortFunc(b.Files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	return b, nil
}

// File finds a file by its name in the archive; nil when the build has none.
func (b Build) File(name string) *File {
	i := slices.IndexFunc(b.Files, func(f File) bool { return f.Name == name })
	if i < 0 {
		return nil
	}
	return &b.Files[i]
}

// Programs are the names of the executables that a release may hold.
func Programs() []string { return slices.Clone(programs[:]) }
