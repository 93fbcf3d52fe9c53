package main

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm"

	"weft/prog/release"
)

// packageName is what the distributions call their files.
func packageName(b release.Build, format string) string {
	arch := b.Arch
	if format == "rpm" {
		arch = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[arch]
	}
	return "weft-linux-" + arch + "." + format
}

// layout says where a package puts the files of a release; what is not listed is not in it.
var layout = []struct{ from, to string }{
	{"weft", "/usr/bin/"},
	{"weft-cni", "/opt/cni/bin/"},
	{"systemd/weft.service", "/usr/lib/systemd/system/"},
	{"systemd/weft-wire.service", "/usr/lib/systemd/system/"},
	{"systemd/weft-guard.service", "/usr/lib/systemd/system/"},
	{"man/weft.1", "/usr/share/man/man1/"},
	{"man/weft.yaml.5", "/usr/share/man/man5/"},
	{"completion/weft.bash", "/usr/share/bash-completion/completions/weft"},
	{"completion/_weft", "/usr/share/zsh/vendor-completions/"},
	{"completion/weft.fish", "/usr/share/fish/vendor_completions.d/"},
	{"10-weft.conflist", "/usr/share/weft/"},
	{"LICENSE", "/usr/share/doc/weft/copyright"},
}

// pack makes a deb or an rpm.
func pack(b release.Build, format string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "weft-package-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // what is left is in the temporary folder
	info := &nfpm.Info{
		Name: "weft", Arch: b.Arch, Platform: "linux", Version: strings.TrimPrefix(b.Version, "v"), VersionSchema: "semver",
		Section: "net", Priority: "optional", Maintainer: "The weft authors <weft@localhost>", License: "Apache-2.0",
		Description: "one encrypted container network over machines anywhere\n" +
			"Each machine runs one small daemon. They find each other by gossip, share the address space among\n" +
			"themselves, and keep a sealed tunnel between every two of them. There is no server to operate.",
		MTime: b.Time,
		Overridables: nfpm.Overridables{
			Depends:    map[string][]string{"deb": nil, "rpm": nil}[format],
			Recommends: map[string][]string{"deb": {"iproute2"}, "rpm": {"iproute"}}[format],
			RPM:        nfpm.RPM{Compression: "gzip", BuildHost: "localhost", Group: "System Environment/Daemons"},
			Deb:        nfpm.Deb{Compression: "gzip"},
		},
	}
	put := func(name string, data []byte) (string, error) {
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		return file, os.WriteFile(file, data, 0o644)
	}
	for _, l := range layout {
		f := b.File(l.from)
		if f == nil {
			continue
		}
		data := f.Data
		if strings.HasPrefix(l.from, "systemd/") { // a package has its programs elsewhere than a person
			data = bytes.ReplaceAll(data, []byte("/usr/local/bin/weft"), []byte("/usr/bin/weft"))
		}
		source, err := put(l.from, data)
		if err != nil {
			return nil, err
		}
		to := l.to
		if strings.HasSuffix(to, "/") {
			to += path.Base(l.from)
		}
		info.Contents = append(info.Contents, &files.Content{
			Source: source, Destination: to, FileInfo: &files.ContentFileInfo{Mode: f.Mode, MTime: b.Time, Owner: "root", Group: "root"},
		})
	}
	if b.File("weft-cni") != nil { // one program, two names
		info.Contents = append(info.Contents, &files.Content{
			Source: "weft-cni", Destination: "/opt/cni/bin/weft-ipam", Type: files.TypeSymlink, FileInfo: &files.ContentFileInfo{MTime: b.Time},
		})
	}
	for _, s := range []struct {
		field *string
		name  string
	}{
		{&info.Scripts.PostInstall, "postinst"}, {&info.Scripts.PreRemove, "prerm"}, {&info.Scripts.PostRemove, "postrm"},
	} {
		text, err := scripts.ReadFile("scripts/" + s.name)
		if err != nil {
			return nil, err
		}
		if *s.field, err = put(s.name, text); err != nil {
			return nil, err
		}
	}
	packager, err := nfpm.Get(format)
	if err != nil {
		return nil, err
	}
	info = nfpm.WithDefaults(info)
	if err := nfpm.PrepareForPackager(info, format); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := packager.Package(info, &out); err != nil {
		return nil, fmt.Errorf("write package: %w", err)
	}
	return out.Bytes(), nil
}
