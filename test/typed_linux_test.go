package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/netlab"
)

// typist types a page on three machines that are as real ones: each has its own name, network, /run, /var/lib, /etc,
// /usr/local/bin and checkout of the repository, so the lines of a page need no flag or variable that a reader would not
// type. Nothing that is typed changes the machine of the test.
type typist struct {
	*testing.T
	machines map[string]*typewriter
	shims    string // folder of sudo and ssh
	weft     string // folder of the program; empty where the page builds it
	token    string // the last one that was printed
	output   string // of the last block
}

// typewriter is one machine.
type typewriter struct {
	host   *netlab.Host
	anchor *netlab.Cmd // holds the mount namespace
	daemon *netlab.Cmd // the last one in the foreground
	home   string
}

const (
	daemonTime = 3 * time.Minute // for a daemon to answer, and for machines to find each other
	typedPoll  = 20 * time.Millisecond
)

// What stands for something else in the pages.
const (
	anyToken   = "weft1…"
	anyAddress = "203.0.113.9" // of the machine itself, as others see it
)

func TestPagesAreTypedOnMachines(t *testing.T) {
	if err := netlab.Supported(); err != nil {
		t.Skip(err)
	}
	for _, file := range documents(t) {
		page := blocks(file, read(t, file))
		if !onMachines(page) {
			continue
		}
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			w := newTypist(t)
			if !strings.Contains(read(t, file), "make build") {
				w.weft = filepath.Dir(weft(t))
			}
			for _, b := range page {
				w.typeBlock(b)
			}
		})
	}
}

func newTypist(t *testing.T) *typist {
	t.Helper()
	lab := netlab.New(t)
	w := &typist{T: t, machines: map[string]*typewriter{}, shims: t.TempDir()}
	// ssh takes its words to the other machine, which is all that the pages need of it.
	ssh := fmt.Sprintf("#!/bin/bash\npid=$(cat %s/$1.pid); shift\nexec nsenter --target $pid --net --mount --uts -- bash -c \"$*\"\n", w.shims)
	for name, text := range map[string]string{"sudo": "#!/bin/sh\nexec \"$@\"\n", "ssh": ssh} {
		if err := os.WriteFile(filepath.Join(w.shims, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i, h := range netlab.ThreeSites(lab).Hosts() {
		w.furnish(fmt.Sprintf("n%d", i+1), h)
	}
	return w
}

// furnish makes a host a machine of its own.
func (w *typist) furnish(name string, h *netlab.Host) {
	w.Helper()
	m := &typewriter{host: h, home: w.TempDir()}
	m.anchor = h.Command("unshare", "--uts", "bash", "-euc", fmt.Sprintf(`
hostname %[1]s
mount -t tmpfs tmpfs /run
mkdir /run/netns
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs %[2]s
for d in /etc /opt /usr/local/bin %[3]s; do
	mkdir -p %[2]s/up$d %[2]s/work$d
	mount -t overlay -o lowerdir=$d,upperdir=%[2]s/up$d,workdir=%[2]s/work$d overlay $d
done
echo furnished
exec sleep infinity`, name, m.home, root(w.T))).PrivateMounts().Quiet()
	if err := m.anchor.Start(); err != nil {
		w.Fatal(err)
	}
	if _, err := m.anchor.WaitOutput(w.Context(), "furnished"); err != nil {
		w.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.shims, name+".pid"), []byte(fmt.Sprint(m.anchor.Pid())), 0o644); err != nil {
		w.Fatal(err)
	}
	w.machines[name] = m
}

// shell prepares a script on a machine.
func (w *typist) shell(m *typewriter, script string) *netlab.Cmd {
	dir := m.home
	if strings.Contains(script, "make ") {
		dir = root(w.T)
	}
	path := strings.Join([]string{w.shims, "/usr/local/bin", w.weft, os.Getenv("PATH")}, ":")
	args := []string{"--target", fmt.Sprint(m.anchor.Pid()), "--mount", "--uts", "--", "env", "-i", "PATH=" + path}
	args = append(args, cleanEnvironment()...)
	return m.host.Command("nsenter", append(args, "bash", "-euo", "pipefail", "-c", "cd "+dir+"\nexec 2>&1\n"+script)...)
}

func (w *typist) typeBlock(b block) {
	w.Helper()
	if m := interrupt.FindStringSubmatch(b.mark); b.lang == "^C" {
		d := w.machines[m[1]].daemon
		if d == nil {
			w.Fatalf("%s: nothing runs in the foreground of %s", b.where(), m[1])
		}
		if err := errors.Join(d.Signal(os.Interrupt), d.Wait()); err != nil {
			w.Fatalf("%s: %v", b.where(), err)
		}
		return
	}
	if b.mark == "prints" {
		if err := printed(b.lines, w.output); err != nil {
			w.Errorf("%s: %v\n%s", b.where(), err, w.output)
		}
		return
	}
	mark := typedOn.FindStringSubmatch(b.mark)
	if b.lang != "sh" || mark == nil {
		return
	}
	for name := range strings.FieldsSeq(mark[1]) {
		m := w.machines[name]
		if slices.ContainsFunc(b.commands(), func(c string) bool { return strings.HasPrefix(c, "sudo weft up") }) {
			w.start(b, m)
		} else {
			w.execute(b, m, mark[2] != "")
		}
	}
	w.settle(b)
}

// filled is a line with what a reader fills in.
func (w *typist) filled(text string, m *typewriter) string {
	return strings.NewReplacer(anyToken, w.token, anyAddress, m.host.Addr4().String()).Replace(text)
}

// start begins a daemon, which stays in the foreground of its terminal.
func (w *typist) start(b block, m *typewriter) {
	w.Helper()
	if len(b.commands()) != 1 {
		w.Fatalf("%s: the daemon stays in the foreground, so its line stands alone", b.where())
	}
	line := b.commands()[0]
	m.daemon = w.shell(m, "exec "+w.filled(line, m))
	if err := m.daemon.Start(); err != nil {
		w.Fatalf("%s: %v", b.where(), err)
	}
	member := regexp.MustCompile(`--(init|join)`).MatchString(line)
	ctx, cancel := context.WithTimeout(w.Context(), daemonTime)
	defer cancel()
	err := until(ctx, func() error {
		select {
		case <-m.daemon.Done():
			return fmt.Errorf("it has ended: %s", m.daemon.Stdout())
		default:
		}
		st, err := w.status(m)
		if err == nil && member && st.Node.State != control.NodeReady {
			err = fmt.Errorf("%s: %s", st.Node.State, st.Node.Reason)
		}
		return err
	})
	if err != nil {
		w.Fatalf("%s: %s: %v\n%s", b.where(), line, err, m.daemon.Stdout())
	}
	w.keep(m.daemon.Stdout())
}

func (w *typist) execute(b block, m *typewriter, fails bool) {
	w.Helper()
	c := w.shell(m, w.filled(b.text(), m)).Quiet() // a failure is shown below
	if err := c.Start(); err != nil {
		w.Fatalf("%s: %v", b.where(), err)
	}
	select {
	case <-c.Done():
	case <-time.After(snippetTimeout):
		w.Fatalf("%s: still not done after %v\n%s\n%s", b.where(), snippetTimeout, b.text(), c.Stdout())
	}
	w.keep(c.Stdout())
	if code := c.ExitCode(); fails != (code != 0) {
		w.Fatalf("%s: exit status %d\n%s\n\n%s", b.where(), code, b.text(), w.output)
	}
}

// keep is for what comes after: the page shows the output, and types the token.
func (w *typist) keep(output string) {
	w.output = output
	if found := regexp.MustCompile(`weft1[a-z2-7]{20,}`).FindString(output); found != "" {
		w.token = found
	}
}

// settle gives the machines the time that a reader gives them: until those that run see and reach each other.
func (w *typist) settle(b block) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), daemonTime)
	defer cancel()
	if err := until(ctx, w.settled); err != nil {
		w.Fatalf("%s: after it %v", b.where(), err)
	}
}

func (w *typist) settled() error {
	ready := map[string]control.Status{}
	for name, m := range w.machines {
		if m.daemon == nil || m.daemon.ExitCode() >= 0 {
			continue
		}
		if st, err := w.status(m); err == nil && st.Node.State == control.NodeReady {
			ready[name] = st
		}
	}
	for name, st := range ready {
		up := 0
		for _, p := range st.Peers {
			// A reader is slower than the first probe, so the pages show its answer.
			if p.State == control.PeerAlive && p.Path != control.PathNone && p.RTTms > 0 {
				up++
			}
		}
		if up < len(ready)-1 {
			return fmt.Errorf("%s reaches %d of %d others: %+v", name, up, len(ready)-1, st.Peers)
		}
	}
	return nil
}

func (w *typist) status(m *typewriter) (st control.Status, err error) {
	c := w.shell(m, "weft status --json").Quiet()
	if err := c.Run(); err != nil {
		return st, fmt.Errorf("%w: %s", err, c.Stdout())
	}
	return st, json.Unmarshal([]byte(c.Stdout()), &st)
}

// until calls f until it returns nil or ctx ends; then the error is the last one of f.
func until(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(typedPoll):
		}
	}
}
