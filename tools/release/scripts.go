package main

import "embed"

// scripts are what a package does when it comes and goes; they do what prog/join/weft-join.sh does, in the words of a
// package manager.
//
//go:embed scripts
var scripts embed.FS
