// Package install holds stories of how weft gets onto machines and off again: machines with file systems and init
// systems of their own, the join script, packages, upgrades.
package install

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weft/test/cluster"
	"weft/test/netlab"
)

// site is a depot of releases and hosts on one cable with it.
type site struct {
	t     *testing.T
	lab   *netlab.Lab
	lan   *netlab.Host
	url   string
	hosts int
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, lab: netlab.New(t)}
	s.lan = s.lab.Switch("lan")
	d := s.lab.Host("depot")
	s.plug(d)
	s.url = depot(t, d)
	return s
}

func (s *site) plug(h *netlab.Host) {
	s.hosts++
	n := string(rune('0' + s.hosts))
	s.lab.Link(h.Port("eth0", "192.0.2."+n+"/24", "2001:db8::"+n+"/64"), s.lan.Port("p"+n))
}

// room adds a machine.
func (s *site) room(name, kind string) *room {
	s.t.Helper()
	h := s.lab.Host(name)
	s.plug(h)
	return enter(s.t, h, kind, nil)
}

// script is the join script as every machine has it, and from is its release.
const script = "/lab/dist/weft-join.sh"

func (s *site) from(dist string) string { return " --url " + s.url + "/" + dist + " " }

// oneLine is what the documentation says to type.
func (s *site) oneLine(dist, words string) string {
	return "curl -fsSL " + s.url + "/" + dist + "/weft-join.sh | sh -s --" + s.from(dist) + words
}

// found makes a cluster, on a machine without an init system, and returns a token.
func (s *site) found() (founder *room, token string) {
	s.t.Helper()
	founder = s.room("founder", "plain")
	founder.must(script + " --init" + s.from("dist"))
	return founder, strings.TrimSpace(founder.must("weft token create 2>/dev/null"))
}

// before is a machine as it was, files and network.
type before struct {
	tree    map[string]string
	network string
}

func (r *room) look() before { return before{r.tree(), r.network()} }

// installed is the tree without what the daemon keeps writing.
func (r *room) installed() map[string]string {
	all := r.tree()
	for name := range all {
		if strings.HasPrefix(name, "/var/lib/weft") {
			delete(all, name)
		}
	}
	return all
}

// same checks that the machine is as it was, when the kernel has taken back what it takes back on its own.
func (r *room) same(b before, after string) {
	r.t.Helper()
	if err := cluster.Poll(r.within(patience), func() error {
		if diff := cmp.Diff(b.tree, r.tree()); diff != "" {
			return fmt.Errorf("%s: files after %s:\n%s", r.Name(), after, diff)
		}
		if diff := cmp.Diff(b.network, r.network()); diff != "" {
			return fmt.Errorf("%s: network after %s:\n%s", r.Name(), after, diff)
		}
		return nil
	}); err != nil {
		r.t.Error(err)
	}
}

// One line joins, and one takes everything away again, on each kind of machine.
func TestOneLineJoins(t *testing.T) {
	for _, kind := range []string{"systemd", "plain", "busybox", "debian"} {
		t.Run(kind, func(t *testing.T) {
			if kind == "debian" && os.Getenv("WEFT_TEST_LONG") == "" {
				t.Skip("makes a Debian of its own: WEFT_TEST_LONG=1, or make test-release")
			}
			s := newSite(t)
			founder, token := s.found()
			r := s.room("n2", kind)
			fetch := s.oneLine
			if kind == "busybox" || kind == "debian" { // they have wget only
				fetch = func(dist, words string) string {
					return strings.Replace(s.oneLine(dist, words), "curl -fsSL", "wget -q -O -", 1)
				}
			}
			was := r.look()
			r.must(fetch("dist", "--dry-run "+token))
			r.same(was, "--dry-run")

			began := time.Now()
			out := r.must(fetch("dist", token))
			t.Logf("joined %.1f s after the line was typed", time.Since(began).Seconds())
			for _, words := range []string{"Ready: weft " + older, "Node        n2  ready"} {
				if !strings.Contains(out, words) {
					t.Errorf("the line does not print %q:\n%s", words, out)
				}
			}
			r.wait("weft ping founder -c 1", "1 answered")
			if out := r.must("cat /proc/[0-9]*/cmdline | tr '\\0' ' '"); strings.Contains(out, token) {
				t.Errorf("the token is in the process list:\n%s", out)
			}
			// Again: nothing is done twice.
			again := r.installed()
			if out := r.must(fetch("dist", token)); strings.Contains(out, "put ") || strings.Contains(out, "restart") {
				t.Errorf("a second run changes something:\n%s", out)
			}
			if diff := cmp.Diff(again, r.installed()); diff != "" {
				t.Errorf("a second run changed files:\n%s", diff)
			}
			r.must("/usr/local/share/weft/weft-join.sh --uninstall")
			r.same(was, "--uninstall")
			founder.wait("weft status", "ready")
		})
	}
}

// What is wrong with the machine or the release is said before anything is changed.
func TestRefusedBeforeAnythingIsChanged(t *testing.T) {
	s := newSite(t)
	r := s.room("n1", "plain")
	r.must("mkdir -p /tmp/bad /tmp/shim /tmp/none && cp /lab/dist/weft-linux-*.tar.gz /tmp/bad && cd /tmp/bad && for f in *.gz; do echo \"$(sha256sum </dev/null | cut -c1-64)  $f\" >SHA256SUMS; done")
	r.must("cd /tmp/shim && for c in sh uname tar sha256sum id grep cat dirname mktemp rm cp awk mkdir head; do ln -sf $(command -v $c) $c; done")
	was := r.look()
	for _, c := range []struct {
		name, line string
		words      []string
	}{
		{"a checksum that does not fit", script + " --archive /tmp/bad/weft-linux-*.tar.gz", []string{"is not what SHA256SUMS says", "Nothing was changed"}},
		{"a checksum by hand that does not fit", script + " --sha256 abc --archive /lab/dist/weft-linux-*.tar.gz", []string{"should have abc"}},
		{"no sums beside the archive", "cp /lab/dist/*.tar.gz /tmp/none; " + script + " --archive /tmp/none/*.tar.gz", []string{"there is no SHA256SUMS beside"}},
		{"nobody serves", script + " --url http://127.0.0.1:81", []string{"cannot fetch http://127.0.0.1:81/SHA256SUMS"}},
		{"nothing there", script + " --url http://192.0.2.1/nothing", []string{"cannot fetch http://192.0.2.1/nothing/SHA256SUMS"}},
		{"no address", script, []string{"it is not said where releases are", "--url URL"}},
		{"not root", "setpriv --reuid 65534 --clear-groups " + script + s.from("dist"), []string{"this needs root"}},
		{"an old kernel", "setarch --uname-2.6 " + script + s.from("dist"), []string{"weft needs 5.2 or later"}},
		{"another architecture", "setarch i686 " + script + s.from("dist"), []string{"there is no weft for i686"}},
		{"neither curl nor wget", "PATH=/tmp/shim " + script + s.from("dist"), []string{"there is neither curl nor wget", "--archive FILE"}},
		{"no tool", "mkdir -p /tmp/few; ln -sf $(command -v sh) $(command -v uname) $(command -v id) /tmp/few; PATH=/tmp/few " + script, []string{"there is no tar"}},
		{"no token", script + " nonsense", []string{"a token begins with weft1"}},
		{"no such option", script + " --frobnicate", []string{"there is no option --frobnicate", "--help"}},
		{"both", script + " --init weft1abc", []string{"not both"}},
		{"a port that is taken", "busybox nc -l -p 6783 & sleep 0.3; " + script + s.from("dist") + "; code=$?; kill $!; exit $code", []string{"another program has port 6783/tcp", "ss -lnp"}},
		{"no room to fetch", "mkdir -p /tmp/small && mount -t tmpfs -o size=1m small /tmp/small; TMPDIR=/tmp/small " + script + s.from("dist") + "; code=$?; umount /tmp/small; exit $code", []string{"cannot fetch", "TMPDIR"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.t = t
			r.refused(c.line, c.words...)
			r.same(was, "a refusal")
		})
	}
	r.t = t
	if out := r.must("ls /tmp"); strings.Contains(out, "weft-join") {
		t.Errorf("temporary files are left:\n%s", out)
	}
	// A disk that is full half-way: what came is in the record, and with room the same line goes on.
	r.must("mount -t tmpfs -o size=12m small /usr/local")
	r.refused(script+s.from("dist")+"--init", "Make room, then type the same line again")
	if r.has("/usr/local/bin/weft") || r.has("/usr/local/bin/weft.new") {
		t.Error("half a program is left")
	}
	r.must("mount -o remount,size=200m /usr/local")
	r.must(script + s.from("dist") + "--init")
	r.must(script + " --uninstall && umount /usr/local")
	r.same(was, "--uninstall")
}

// A run that is killed at any of its steps leaves nothing that the next one cannot go on from, or take away.
func TestInterruptedAnywhere(t *testing.T) {
	s := newSite(t)
	r := s.room("n1", "plain")
	was := r.look()
	// The script is killed, with all that it has started in the foreground, when it says its Nth step.
	r.write("/tmp/interrupted.sh", strings.Replace(string(read(t, "../../prog/join/weft-join.sh")), "say() {",
		"say() {\n\tsteps=$((${steps:-0} + 1))\n\t[ $steps -ne \"$STOP_AT\" ] || kill -KILL $$\n", 1))
	stride := 7
	if os.Getenv("WEFT_TEST_LONG") != "" {
		stride = 1
	}
	steps := 1
	for ; ; steps += stride {
		line := fmt.Sprintf("STOP_AT=%d sh /tmp/interrupted.sh --init", steps) + s.from("dist")
		if _, err := r.sh(line); err == nil {
			break
		}
		r.must(script + " --uninstall")
		r.same(was, fmt.Sprintf("step %d and --uninstall", steps))
		if _, err := r.sh(line); err == nil {
			t.Fatalf("it was to be killed at step %d", steps)
		}
		if out := r.must(script + " --init" + s.from("dist")); !strings.Contains(out, "Ready") {
			t.Errorf("after step %d: %s", steps, out)
		}
		r.must(script + " --uninstall; rm -rf /tmp/weft-join.*")
		r.same(was, fmt.Sprintf("step %d, the whole line and --uninstall", steps))
	}
	t.Logf("%d steps", steps)
	if steps < 12 {
		t.Errorf("only %d steps", steps)
	}
	r.wait("weft status", "ready")
	r.must(script + " --uninstall; rm -rf /tmp/weft-join.* /tmp/interrupted.sh")
	r.same(was, "--uninstall")
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	return b
}

// A machine that ran containers before: what another network left is kept and put back, and weft's place among the
// configurations is told.
func TestContainerRuntimesFindThePlugin(t *testing.T) {
	if _, err := os.Stat("../../cmd/weft-cni"); err != nil {
		t.Skip("there is no cmd/weft-cni")
	}
	s := newSite(t)
	r := s.room("n1", "plain")
	r.must("rm -rf /usr/lib/cni && mkdir -p /etc/cni/net.d /usr/lib/cni")
	r.write("/etc/cni/net.d/10-weft.conflist", "somebody's own\n")
	r.write("/etc/cni/net.d/05-other.conflist", "{}\n")
	r.write("/etc/cni/net.d/87-podman.conflist", "{}\n")
	was := r.look()
	out := r.must(script + " --init" + s.from("dist"))
	for _, words := range []string{
		"what was there is now /etc/cni/net.d/10-weft.conflist.before-weft",
		"container runtimes take /etc/cni/net.d/05-other.conflist before weft's", "there is no portmap plugin",
	} {
		if !strings.Contains(out, words) {
			t.Errorf("it does not say %q:\n%s", words, out)
		}
	}
	if strings.Contains(out, "87-podman") {
		t.Errorf("it warns of a file that comes after weft's:\n%s", out)
	}
	conf := r.must("cat /etc/cni/net.d/10-weft.conflist")
	if !json.Valid([]byte(conf)) || strings.Contains(conf, "portmap") {
		t.Errorf("the configuration is\n%s", conf)
	}
	// What a runtime does.
	plugin := `ip netns add web && CNI_COMMAND=%s CNI_CONTAINERID=c1 CNI_NETNS=/run/netns/web CNI_IFNAME=eth0 CNI_PATH=/usr/lib/cni ` +
		`/usr/lib/cni/weft-cni <<<'{"cniVersion":"1.0.0","name":"weft","type":"weft-cni"}'`
	if out := r.must("bash -c " + quote(fmt.Sprintf(plugin, "ADD"))); !strings.Contains(out, "10.32.0.") {
		t.Errorf("the plugin answers\n%s", out)
	}
	// A pod is in the way of leaving, and it is said.
	r.refused(script+" --uninstall", "pods are still attached", "Nothing else was removed yet")
	r.must("weft detach web && ip netns del web")
	// With portmap there, and weft's file again in order.
	r.write("/opt/cni/bin/portmap", "#!/bin/sh\n")
	r.must(script + " --init" + s.from("dist"))
	if conf := r.must("cat /etc/cni/net.d/10-weft.conflist"); !json.Valid([]byte(conf)) || !strings.Contains(conf, "portmap") {
		t.Errorf("the configuration is\n%s", conf)
	}
	r.must("rm /opt/cni/bin/portmap; " + script + " --uninstall")
	r.same(was, "--uninstall")
	r.must(script + " --no-cni --init" + s.from("dist") + " && ! test -e /opt/cni && " + script + " --uninstall")
	r.same(was, "--no-cni and --uninstall")
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
