package runtimes

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// File is what an image holds beside busybox.
type File struct {
	Path string // such as "bin/labprobe", without a slash in front
	Data []byte
	Mode int64
}

// Image makes the archive of an image by hand, with no registry and no builder: /bin with busybox (of Debian's package
// busybox-static) under all its names, and files. ref is whole, such as "docker.io/library/pod:1". containerd imports the
// archive (ctr image import: OCI layout), as do docker load and podman load (manifest.json). The same arguments make the
// same bytes.
func Image(ref string, command []string, files ...File) ([]byte, error) {
	root, err := busyboxRoot()
	if err != nil {
		return nil, err
	}
	layer, err := archive(append(root, files...))
	if err != nil {
		return nil, err
	}
	type m = map[string]any
	var blobs []File
	blob := func(media string, v any) m {
		b, raw := v.([]byte)
		if !raw {
			b, err = json.Marshal(v)
		}
		sum := sha256.Sum256(b)
		name := hex.EncodeToString(sum[:])
		blobs = append(blobs, File{"blobs/sha256/" + name, b, 0o644})
		return m{"mediaType": media, "digest": "sha256:" + name, "size": len(b)}
	}
	const media = "application/vnd.oci.image."
	top := blob(media+"layer.v1.tar", layer)
	config := blob(media+"config.v1+json", m{
		"architecture": runtime.GOARCH, "os": "linux", "created": "1970-01-01T00:00:00Z",
		"config":  m{"Cmd": command, "Env": []string{"PATH=/bin"}, "WorkingDir": "/"},
		"rootfs":  m{"type": "layers", "diff_ids": []any{top["digest"]}},
		"history": []m{{"created": "1970-01-01T00:00:00Z"}},
	})
	manifest := blob(media+"manifest.v1+json", m{
		"schemaVersion": 2, "mediaType": media + "manifest.v1+json", "config": config, "layers": []m{top},
	})
	manifest["platform"] = m{"architecture": runtime.GOARCH, "os": "linux"}
	manifest["annotations"] = m{"io.containerd.image.name": ref, "org.opencontainers.image.ref.name": ref[strings.LastIndexByte(ref, ':')+1:]}
	blobPath := func(d m) string { return "blobs/" + strings.Replace(d["digest"].(string), ":", "/", 1) }
	index, err1 := json.Marshal(m{"schemaVersion": 2, "manifests": []m{manifest}})
	docker, err2 := json.Marshal([]m{{
		"Config": blobPath(config), "Layers": []string{blobPath(top)}, "RepoTags": []string{strings.TrimPrefix(ref, "docker.io/library/")},
	}})
	if err := errors.Join(err, err1, err2); err != nil {
		return nil, fmt.Errorf("make image %s: %w", ref, err)
	}
	return archive(append([]File{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644},
		{"index.json", index, 0o644},
		{"manifest.json", docker, 0o644},
	}, blobs...))
}

// linkMode marks a File whose Data is what a symbolic link points to, dirMode a folder.
const (
	linkMode = -1
	dirMode  = -2
)

// busyboxRoot lists the files of a root file system.
func busyboxRoot() ([]File, error) {
	const path, hint = "/bin/busybox", "apt-get install --no-install-recommends busybox-static"
	box, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("make image: %w (%s)", err, hint)
	}
	names, err := exec.Command(path, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("make image: list what busybox can: %w", err)
	}
	root := []File{{"bin/busybox", box, 0o755}}
	for _, dir := range []string{"dev", "etc", "proc", "root", "run", "sys", "tmp", "var"} {
		root = append(root, File{Path: dir, Mode: dirMode})
	}
	root = append(root, File{"etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o644}, File{"etc/group", []byte("root:x:0:\n"), 0o644})
	all := strings.Fields(string(names))
	slices.Sort(all)
	for _, name := range slices.Compact(all) {
		if name != "busybox" { // it names itself, too
			root = append(root, File{"bin/" + name, []byte("busybox"), linkMode})
		}
	}
	return root, nil
}

func archive(files []File) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		h := &tar.Header{Name: f.Path, Mode: f.Mode, Size: int64(len(f.Data)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		switch f.Mode {
		case linkMode:
			h.Typeflag, h.Linkname, h.Mode, h.Size = tar.TypeSymlink, string(f.Data), 0o777, 0
		case dirMode:
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("write %s: %w", f.Path, err)
		}
		if h.Size > 0 {
			if _, err := w.Write(f.Data); err != nil {
				return nil, fmt.Errorf("write %s: %w", f.Path, err)
			}
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("write archive: %w", err)
	}
	return out.Bytes(), nil
}
