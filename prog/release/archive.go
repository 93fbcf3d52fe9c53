package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// ArchiveName is what an archive is called; it carries no version, so that one address always has the newest.
func (b Build) ArchiveName() string { return "weft-linux-" + b.Arch + ".tar.gz" }

// Archive is the build as a compressed tar.
func (b Build) Archive() ([]byte, error) { return pack(b.Files, b.Time, true) }

// pack writes files in their order, folders before what is in them.
func pack(files []File, at time.Time, compress bool) ([]byte, error) {
	var out bytes.Buffer
	var w interface {
		Write(p []byte) (int, error)
		Close() error
	} = nopCloser{&out}
	if compress {
		z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
		if err != nil {
			return nil, err
		}
		w = z // its header holds no time and no name
	}
	t := tar.NewWriter(w)
	made := map[string]bool{".": true}
	var folder func(dir string) error
	folder = func(dir string) error {
		if made[dir] {
			return nil
		}
		if err := folder(path.Dir(dir)); err != nil {
			return err
		}
		made[dir] = true
		return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: at, Format: tar.FormatUSTAR})
	}
	for _, f := range files {
		if err := folder(path.Dir(f.Name)); err != nil {
			return nil, fmt.Errorf("pack %s: %w", f.Name, err)
		}
		h := &tar.Header{
			Typeflag: tar.TypeReg, Name: f.Name, Mode: int64(f.Mode.Perm()), Size: int64(len(f.Data)), ModTime: at,
			Format: tar.FormatUSTAR,
		}
		if err := t.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("pack %s: %w", f.Name, err)
		}
		if _, err := t.Write(f.Data); err != nil {
			return nil, fmt.Errorf("pack %s: %w", f.Name, err)
		}
	}
	if err := t.Close(); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	return out.Bytes(), nil
}

type nopCloser struct{ *bytes.Buffer }

func (nopCloser) Close() error { return nil }

// Sums is a SHA256SUMS over artefacts, as sha256sum reads it.
func Sums(artefacts []File) []byte {
	var lines []string
	for _, f := range artefacts {
		lines = append(lines, fmt.Sprintf("%x  %s\n", sha256.Sum256(f.Data), f.Name))
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[66:], b[66:]) })
	return []byte(strings.Join(lines, ""))
}
