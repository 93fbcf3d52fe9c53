package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft/test/cluster"
	"weft/test/netlab"
)

// room is a machine that has not only a network but a file system and processes of its own: see testdata/room.sh.
type room struct {
	*netlab.Host
	t      *testing.T
	kind   string
	below  string // the files that it began with; empty: this machine's own
	folder string
	init   *netlab.Cmd
	pid    int // of its process 1, as the machine below counts
}

const (
	bootTime = 3 * time.Minute
	// patience is for what takes some seconds on a machine that has nothing else to do.
	patience = 2 * time.Minute
)

// enter makes a room of a host; prepare puts files into it before it boots. What a machine keeps over a reboot is not
// kept: each room is a new machine. The kind "debian" is systemd on files that come from Debian's archive alone.
func enter(t *testing.T, h *netlab.Host, kind string, prepare func(*room)) *room {
	t.Helper()
	below := ""
	if kind == "debian" {
		kind, below = "systemd", debian(t)
	}
	r := &room{Host: h, t: t, kind: kind, below: below, folder: filepath.Join(h.Dir(), "room-"+kind)}
	must(t, os.MkdirAll(r.folder, 0o700))
	script, err := filepath.Abs("testdata/room.sh")
	must(t, err)
	name := h.NSName()
	t.Cleanup(func() { removeCgroups(r.folder + ".cgroups") })
	r.init = h.Command(script, kind, r.folder, name).Env("LAB_FILES="+files, "LAB_BELOW="+below).Quiet()
	must(t, r.init.Start())
	t.Cleanup(r.kill)
	t.Cleanup(func() {
		if t.Failed() && r.kind == "systemd" {
			out, _ := r.sh("journalctl --no-pager -q -o cat -u weft -u weft-wire -u weft-guard | tail -n 60")
			t.Logf("journal of %s:\n%s", r.Name(), out)
		}
	})
	must(t, cluster.Poll(r.within(bootTime), func() error {
		select {
		case <-r.init.Done():
			return fmt.Errorf("the room ended: %s", r.init.Stderr())
		default:
		}
		if err := r.find(); err != nil {
			return err
		}
		_, err := os.Stat(r.path("/run/room"))
		if err == nil {
			_, err = os.Stat(r.path("/lab/dist"))
		}
		return err
	}))
	if prepare != nil {
		prepare(r)
	}
	r.write("/run/boot", "")
	must(t, cluster.Poll(r.within(bootTime), func() error {
		if kind != "systemd" {
			_, err := os.Stat(r.path("/run/up"))
			return err
		}
		out, _ := r.sh("systemctl is-system-running")
		if state := strings.TrimSpace(out); state != "running" && state != "degraded" {
			return fmt.Errorf("systemd is %q", state)
		}
		return nil
	}))
	return r
}

// find finds process 1: the child of unshare.
func (r *room) find() error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", r.init.Pid()))
	if err != nil {
		return err
	}
	words := strings.Fields(string(b))
	if len(words) != 1 {
		return errors.New("there is no process 1 yet")
	}
	r.pid, err = strconv.Atoi(words[0])
	return err
}

// kill is a power cut.
func (r *room) kill() {
	r.init.Kill()
	<-r.init.Done()
	// Process 1 dies with unshare; its cgroups are empty a moment later.
	deadline := time.Now().Add(bootTime)
	for time.Now().Before(deadline) {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", r.pid)); err != nil {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
}

// removeCgroups removes those that the room was in, from the inside out.
func removeCgroups(list string) {
	b, _ := os.ReadFile(list) // none: it came to nothing
	for top := range strings.FieldsSeq(string(b)) {
		var all []string
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append(all, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(all) {
			_ = os.Remove(dir)
		}
	}
}

// path is a file of the room as the test sees it.
func (r *room) path(name string) string { return fmt.Sprintf("/proc/%d/root%s", r.pid, name) }

func (r *room) write(name, text string) {
	r.t.Helper()
	must(r.t, os.MkdirAll(filepath.Dir(r.path(name)), 0o755))
	must(r.t, os.WriteFile(r.path(name), []byte(text), 0o755))
}

func (r *room) has(name string) bool {
	_, err := os.Lstat(r.path(name))
	return err == nil
}

// command is a line of shell in the room.
func (r *room) command(line string) *netlab.Cmd {
	return r.Command("nsenter", "-t", strconv.Itoa(r.pid), "-m", "-u", "-i", "-p", "-C", "--", "/bin/sh", "-c",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C; export PATH HOME LC_ALL; "+line)
}

// sh runs a line and returns both outputs, and an error with them when it failed.
func (r *room) sh(line string) (string, error) {
	c := r.command(line).InDir("/").Quiet()
	err := c.Run()
	out := c.Stdout() + c.Stderr()
	if err != nil {
		return out, fmt.Errorf("%s: %q: exit %d\n%s", r.Name(), line, c.ExitCode(), out)
	}
	return out, nil
}

// must runs a line that works.
func (r *room) must(line string) string {
	r.t.Helper()
	out, err := r.sh(line)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// refused runs a line that fails with these words.
func (r *room) refused(line string, words ...string) string {
	r.t.Helper()
	out, err := r.sh(line)
	if err == nil {
		r.t.Fatalf("%s: %q should have failed:\n%s", r.Name(), line, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			r.t.Errorf("%s: %q does not say %q:\n%s", r.Name(), line, w, out)
		}
	}
	return out
}

func (r *room) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(r.t.Context(), d)
	r.t.Cleanup(cancel)
	return ctx
}

// wait runs a line until it prints all of these.
func (r *room) wait(line string, words ...string) {
	r.t.Helper()
	must(r.t, cluster.Poll(r.within(patience), func() error {
		out, err := r.sh(line)
		if err != nil {
			return err
		}
		for _, w := range words {
			if !strings.Contains(out, w) {
				return fmt.Errorf("%q does not print %q:\n%s", line, w, out)
			}
		}
		return nil
	}))
}

// noise are the files that a machine writes by itself.
var noise = []string{"/var/log", "/var/cache", "/var/tmp", "/tmp", "/run", "/dev", "/var/lib/systemd", "/etc/machine-id", "/root/.", "/lab", "/proc", "/sys"}

// tree lists all that differs from the machine below, with kinds, modes and what is in each file.
func (r *room) tree() map[string]string {
	r.t.Helper()
	top := r.path("/.upper")
	if r.kind == "busybox" {
		top = r.path("/")
	}
	all := map[string]string{}
	must(r.t, filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) (result error) {
		defer func() {
			if errors.Is(result, fs.ErrNotExist) && path != top { // what went while we looked is not there
				result = nil
			}
		}()
		if err != nil {
			return err
		}
		name := "/" + strings.TrimPrefix(strings.TrimPrefix(path, top), "/")
		if slices.ContainsFunc(noise, func(n string) bool {
			return name == n || strings.HasPrefix(name, n+"/") || n == "/root/." && strings.HasPrefix(name, n)
		}) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		what := info.Mode().String()
		if below, err := os.Lstat(r.below + name); err == nil && r.kind != "busybox" && d.IsDir() && below.Mode() == info.Mode() {
			return nil // a folder that is here only for what was in it
		}
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what += fmt.Sprintf(" %d bytes, %x", len(b), bytes.Count(b, []byte{'\n'}))
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			what += " to " + to
		}
		all[name] = what
		return nil
	}))
	return all
}

// network is everything that the kernel holds for this machine's network.
func (r *room) network() string {
	r.t.Helper()
	var all []string
	must(r.t, r.Do(func() error {
		for _, args := range [][]string{
			{"ip", "-o", "link"},
			{"ip", "-o", "address"},
			{"ip", "route", "show", "table", "all"},
			{"ip", "-6", "route", "show", "table", "all"},
			{"ip", "rule"},
			{"ip", "-6", "rule"},
		} {
			out, err := r.Exec(args[0], args[1:]...)
			if err != nil {
				return err
			}
			for line := range strings.Lines(out) {
				if strings.Contains(line, "fe80") || strings.Contains(line, "ff00") { // these come a second after the link
					continue
				}
				line, _, _ = strings.Cut(line, " valid_lft") // and expire
				line, _, _ = strings.Cut(line, " expires")
				all = append(all, strings.TrimSpace(line))
			}
		}
		return nil
	}))
	all = append(all, r.Tables()...)
	for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/eth0/accept_ra"} {
		b, err := os.ReadFile(r.path("/proc/sys/net/" + key))
		must(r.t, err)
		all = append(all, key+" "+strings.TrimSpace(string(b)))
	}
	return strings.Join(all, "\n") + "\n"
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
