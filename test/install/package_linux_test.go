package install

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// The package of Debian does what the script does, in the words of dpkg. It is made by tools/release, which takes long to
// compile.
func TestDebianPackage(t *testing.T) {
	if os.Getenv("WEFT_TEST_LONG") == "" {
		t.Skip("set WEFT_TEST_LONG=1: it compiles the packager")
	}
	tool := filepath.Join(t.TempDir(), "release")
	cmd := exec.Command("go", "build", "-o", tool, ".")
	cmd.Dir = "../../tools/release"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for version, folder := range map[string]string{older: "deb", newer: "deb-next"} {
		cmd := exec.Command(tool, "-root", "../..", "-o", filepath.Join(files, folder), "-version", version, "-arch", runtime.GOARCH)
		cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	s := newSite(t)
	founder, token := s.found()
	r := s.room("n2", "systemd")
	was := r.look()
	deb := "/lab/%/weft-linux-" + runtime.GOARCH + ".deb"
	r.must("dpkg -i " + strings.Replace(deb, "%", "deb", 1))
	r.must("systemctl is-enabled weft weft-wire weft-guard && systemctl is-active weft weft-wire")
	r.must("weft join " + token)
	r.wait("weft status", "ready", "direct")
	r.refused(script+s.from("dist"), "as a package of this system")
	to := pods(founder, r)
	end := founder.flood(to)
	r.must("dpkg -i " + strings.Replace(deb, "%", "deb-next", 1))
	r.wait("systemctl is-active weft && weft status", newer, "direct")
	r.wait("journalctl -q -u weft", "wire renewed")
	lost, gap := end()
	t.Logf("upgraded: %d packets lost, longest gap %.0f ms", lost, 1000*gap)
	if lost > mostLost {
		t.Errorf("%d packets are lost", lost)
	}
	r.must("weft detach web && ip netns del web && weft leave --purge && dpkg --purge weft")
	now := r.look()
	for name := range now.tree { // dpkg's own books
		if strings.HasPrefix(name, "/var/lib/dpkg") || strings.HasPrefix(name, "/var/cache") || strings.HasPrefix(name, "/var/backups") ||
			strings.HasPrefix(name, "/usr/share/man") {
			delete(now.tree, name)
		}
	}
	for name := range was.tree {
		delete(now.tree, name)
	}
	if len(now.tree) > 0 {
		t.Errorf("dpkg --purge leaves %v", now.tree)
	}
	if now.network != was.network {
		t.Errorf("the network was\n%s\nand is\n%s", was.network, now.network)
	}
}
