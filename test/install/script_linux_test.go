package install

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// What goes onto machines is shell that every shell understands, and units that systemd understands.
func TestScriptsAreClean(t *testing.T) {
	var scripts []string
	for _, pattern := range []string{"prog/join/*.sh", "tools/release/scripts/*", "test/install/testdata/*.sh"} {
		found, err := filepath.Glob(filepath.Join("../..", pattern))
		must(t, err)
		if len(found) == 0 {
			t.Errorf("there is no %s", pattern)
		}
		scripts = append(scripts, found...)
	}
	if out, err := exec.Command("shellcheck", append([]string{"--shell=sh"}, scripts...)...).CombinedOutput(); err != nil {
		t.Errorf("shellcheck: %v\n%s", err, out)
	}
	openrc, err := filepath.Glob("../../prog/openrc/*")
	must(t, err)
	// What OpenRC reads and calls is not used within the file.
	if out, err := exec.Command("shellcheck", append([]string{"--shell=sh", "--exclude=SC2034"}, openrc...)...).CombinedOutput(); err != nil {
		t.Errorf("shellcheck: %v\n%s", err, out)
	}
	for _, script := range scripts {
		for _, shell := range [][]string{{"dash", "-n"}, {"busybox", "sh", "-n"}} {
			if out, err := exec.Command(shell[0], append(shell[1:], script)...).CombinedOutput(); err != nil {
				t.Errorf("%s: %s does not read it: %v\n%s", script, shell[0], err, out)
			}
		}
	}
}
