// Command weft-cni is what container runtimes run to connect a pod: see package cni. Called weft-ipam, it lends addresses
// to other plugins.
package main

import (
	"context"
	"os"
	"runtime/debug"

	"weft/plugin/cni"
	"weft/prog/control"
)

func main() {
	build := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		build = info.Main.Version
	}
	os.Exit(cni.Plugin{
		Program: os.Args[0], Build: build, Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Dial: func(socket string) cni.Daemon { return control.NewClient(socket) },
	}.Run(context.Background()))
}
