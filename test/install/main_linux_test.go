package install

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"weft/prog/release"
	"weft/test/netlab"
)

// files is a folder that every room sees as /lab: the release, a later one, and what probes.
var files string

// The two releases.
const (
	older = "v0.1.0"
	newer = "v0.2.0"
)

// needed are the programs of other packages without which nothing here can be told.
var needed = map[string]string{
	"systemctl": "systemd", "busybox": "busybox-static", "ip": "iproute2", "curl": "curl", "wget": "wget", "shellcheck": "shellcheck",
}

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if err := netlab.Supported(); err != nil {
			return m.Run() // each lab says why it is skipped
		}
		dir, err := os.MkdirTemp("", "weft-install-")
		if err == nil {
			defer os.RemoveAll(dir)
			files = dir
			err = errors.Join(os.Chmod(dir, 0o755), prepare(dir))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// prepare builds both releases as make release would, for this machine alone.
func prepare(dir string) error {
	var errs []error
	for name, pkg := range needed {
		if _, err := exec.LookPath(name); err != nil {
			errs = append(errs, fmt.Errorf("%s is missing: apt-get install -y --no-install-recommends %s", name, pkg))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for version, name := range map[string]string{older: "dist", newer: "next"} {
		dist, bin := filepath.Join(dir, name), filepath.Join(dir, name+"-bin")
		if err := errors.Join(os.MkdirAll(dist, 0o755), os.MkdirAll(bin, 0o755)); err != nil {
			return err
		}
		if err := build(bin, version); err != nil {
			return err
		}
		b, err := release.Collect("../..", bin, filepath.Join(bin, "weft"), release.Build{
			Version: version, Arch: runtime.GOARCH, Time: time.Unix(1700000000, 0),
		})
		if err != nil {
			return err
		}
		archive, err := b.Archive()
		if err != nil {
			return err
		}
		artefacts := []release.File{{Name: b.ArchiveName(), Data: archive}, {Name: "weft-join.sh", Data: b.File("weft-join.sh").Data}}
		artefacts = append(artefacts, release.File{Name: "SHA256SUMS", Data: release.Sums(artefacts)})
		for _, a := range artefacts {
			if err := os.WriteFile(filepath.Join(dist, a.Name), a.Data, 0o755); err != nil {
				return err
			}
		}
	}
	// The test's own probe goes into the machines too.
	return netlab.Build(dir, "weft/test/labprobe")
}

func build(bin, version string) error {
	for _, name := range release.Programs() {
		if _, err := os.Stat(filepath.Join("../../cmd", name)); err != nil {
			continue
		}
		cmd := exec.Command("go", "build", "-trimpath", "-tags=nethttpomithttp2,urfave_cli_no_docs", "-buildvcs=false", "-ldflags=-s -w -X main.release="+version,
			"-o", filepath.Join(bin, name), "weft/cmd/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, out.String())
		}
	}
	return nil
}

// depot serves the releases on a host of the lab, and counts on being asked.
func depot(t *testing.T, h *netlab.Host) (url string) {
	t.Helper()
	ln, err := h.Listen("tcp", ":80")
	must(t, err)
	s := &http.Server{Handler: http.FileServer(http.Dir(files)), ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(ln) // it ends with Close
	}()
	t.Cleanup(func() {
		s.Close()
		<-done
	})
	return "http://" + h.Addr4().String()
}
