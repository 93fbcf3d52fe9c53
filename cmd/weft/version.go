package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
)

func (a *app) versionCommand() *cli.Command {
	return &cli.Command{
		Name:        "version",
		Category:    groupLook,
		Usage:       "how this program was built",
		Flags:       []cli.Flag{jsonFlag()},
		Description: "weft version",
		Action: a.act(0, 0, func(c *cli.Context) error {
			b := readBuild()
			if c.Bool("json") {
				return a.printJSON(b)
			}
			fmt.Fprintf(a.stdout, "weft %s\n", b.Build)
			if b.Commit != "" {
				fmt.Fprintf(a.stdout, "commit %s of %s\n", b.Commit, b.Time)
			}
			fmt.Fprintf(a.stdout, "%s %s/%s\n", b.Go, b.OS, b.Arch)
			return nil
		}),
	}
}

// release is the version of a release, written by the linker; empty in any other build.
var release string

// build is what the Go toolchain wrote into the binary.
type build struct {
	Version  int    `json:"version"`
	Build    string `json:"build"` // the release, or of something between releases the commit
	Commit   string `json:"commit"`
	Time     string `json:"time"`
	Modified bool   `json:"modified"` // with changes that were not committed
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
}

func readBuild() build {
	b := build{Version: control.Version, Build: "devel", Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	switch v := info.Main.Version; {
	case release != "":
		b.Build = release
	case v != "" && v != "(devel)":
		b.Build = v
	case b.Commit != "":
		b.Build = "devel-" + short(b.Commit)
	}
	return b
}

// buildVersion is what status and records show.
func buildVersion() string { return readBuild().Build }
