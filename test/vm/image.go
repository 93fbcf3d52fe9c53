package main

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

//go:embed init.sh
var initScript []byte

// applets are busybox's that the script uses, and the one that the kernel calls to load a module.
var applets = []string{"sh", "mount", "mkdir", "mknod", "ln", "cat", "cut", "ls", "find", "rm", "modprobe", "hostname", "ip", "poweroff", "sync", "dmesg", "env", "sleep", "ps", "wc"}

// archive writes the kernel's own format for its first file system: cpio, "newc".
type archive struct {
	w    *bufio.Writer
	n    int64
	inum int
	seen map[string]bool
	err  error
}

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriterSize(w, 1<<20), seen: map[string]bool{".": true}}
}

func (a *archive) write(b []byte) {
	if a.err == nil {
		_, a.err = a.w.Write(b)
		a.n += int64(len(b))
	}
}

func (a *archive) pad() { a.write(make([]byte, (4-a.n%4)%4)) }

// add writes one entry and, before it, the folders that it lies in.
func (a *archive) add(name string, mode uint32, data []byte) {
	if dir := filepath.Dir(name); !a.seen[dir] && name != trailer {
		a.add(dir, dirMode, nil)
	}
	if a.seen[name] {
		return
	}
	a.seen[name] = true
	a.inum++
	a.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.inum, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0))
	a.write(append([]byte(name), 0))
	a.pad()
	a.write(data)
	a.pad()
}

const (
	dirMode  = 0o040755
	fileMode = 0o100000
	linkMode = 0o120777
	trailer  = "TRAILER!!!"
)

func (a *archive) link(name, to string) { a.add(name, linkMode, []byte(to)) }

// tree adds a folder as it is on disk, links followed, under another name.
func (a *archive) tree(dir, as string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		name := filepath.Join(as, rel)
		if d.IsDir() {
			a.add(name, dirMode, nil)
			return a.err
		}
		st, err := os.Stat(path)
		if err != nil || !st.Mode().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		a.add(name, fileMode|uint32(st.Mode().Perm()), b)
		return a.err
	})
}

func (a *archive) close() error {
	a.add(trailer, 0, nil)
	return errors.Join(a.err, a.w.Flush())
}

// writeBase packs what all runs with a kernel share.
func writeBase(path, root string) (err error) {
	return pack(path, func(a *archive) error {
		for _, dir := range []string{"proc", "sys", "dev", "run", "tmp", "root", "etc", "var", "job", "files"} {
			a.add(dir, dirMode, nil)
		}
		a.link("var/run", "/run")
		a.link("sbin", "bin")
		for _, applet := range applets {
			a.link("bin/"+applet, "busybox")
		}
		a.add("etc/passwd", fileMode|0o644, []byte("root:x:0:0:root:/root:/bin/sh\n"))
		a.add("etc/group", fileMode|0o644, []byte("root:x:0:\n"))
		a.add("etc/hosts", fileMode|0o644, []byte("127.0.0.1 localhost vm\n"))
		a.add("init", fileMode|0o755, initScript)
		return a.tree(root, ".")
	})
}

// writeRun packs the base and what is of this run. The kernel unpacks archives that follow each other.
func writeRun(path string, k kernel, o options, args []string) error {
	base, err := os.ReadFile(k.base())
	if err != nil {
		return err
	}
	program, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	return pack(path, func(a *archive) error {
		a.write(base)
		a.add("job/program", fileMode|0o755, program)
		if st, err := os.Stat("testdata"); err == nil && st.IsDir() {
			if err := a.tree("testdata", "job/testdata"); err != nil {
				return err
			}
		}
		if o.files != "" {
			if err := a.tree(o.files, "files"); err != nil {
				return err
			}
		}
		var script strings.Builder
		for m := range strings.FieldsSeq(o.without) {
			fmt.Fprintf(&script, "find /lib/modules -name '%s.ko' -exec rm {} +\n", strings.ReplaceAll(m, "_", "?"))
		}
		for _, kv := range environment(k, o) {
			fmt.Fprintf(&script, "export %s\n", quote(kv))
		}
		script.WriteString("cd /job\n")
		words := []string{"./program"}
		for _, arg := range args[1:] {
			words = append(words, quote(arg))
		}
		fmt.Fprintln(&script, strings.Join(words, " "))
		a.add("job/run", fileMode|0o755, []byte(script.String()))
		return nil
	})
}

// quote makes one word of the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func pack(path string, fill func(a *archive) error) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	a := newArchive(f)
	if err := fill(a); err != nil {
		return err
	}
	return a.close()
}

// statusOf finds the program's exit status in what the machine said on its control port.
func statusOf(control []byte) (status int, ok bool) {
	lines := strings.Fields(string(control))
	i := slices.Index(lines, "status")
	if i < 0 || i+1 >= len(lines) {
		return 0, false
	}
	_, err := fmt.Sscanf(lines[i+1], "%d", &status)
	return status, err == nil
}
