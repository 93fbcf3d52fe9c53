package runtimes_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"weft/test/runtimes"
)

// containerd2 is no package of Debian 12, and takes some minutes to build.
const containerd2 = "github.com/containerd/containerd/v2/cmd/%s@v2.4.2"

const containerd2Config = `version = 3
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "docker.io/library/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
`

// build2 returns the folder of the built programs; containerd2Env names one that was built before.
const containerd2Env = "WEFT_TEST_CONTAINERD2"

func build2(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv(containerd2Env); dir != "" {
		return dir
	}
	dir, err := bin.get()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"install", "-trimpath", "-ldflags=-s -w", "-tags", "no_btrfs no_zfs no_devmapper"}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		args = append(args, fmt.Sprintf(containerd2, name))
	}
	c := exec.Command("go", args...)
	c.Dir, c.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOBIN="+filepath.Join(dir, "containerd2"))
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build containerd 2: %v\n%s", err, out)
	}
	return filepath.Join(dir, "containerd2")
}

// containerd 2 asks for the plugin's STATUS, so that a node without a daemon is known not to be ready.
func TestContainerd2(t *testing.T) {
	if os.Getenv("WEFT_TEST_LONG") == "" {
		t.Skip("takes minutes to build: WEFT_TEST_LONG=1, or make test-long")
	}
	need(t, "runc", "/usr/sbin/runc")
	dir := build2(t)
	s := tell(t, 1)
	w := s.nodes[0]
	// The plugins of Debian speak 1.0.0 at most.
	s.must(w.Configure(`{"cniVersion":"1.1.0","name":"weft","plugins":[{"type":"weft-cni"}]}`))
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		s.must(w.Install(filepath.Join(dir, name), "/opt/weft/bin/"+name))
	}
	s.must(w.WriteFile("/etc/containerd/config.toml", []byte(containerd2Config), 0o644))
	s.must(w.Install(criProgram(t), "/opt/weft/bin/cri"))
	pause, _ := images(t)
	s.must(w.WriteFile("/var/lib/images/pause.tar", pause, 0o644))
	k := &kubelet{story: s, Weft: w}
	k.start()
	s.sh(w, "ctr -n k8s.io image import --local /var/lib/images/pause.tar")
	pods := k.ask("up", "-n", "10", "-parallel", "5")
	s.must(k.owns(pods))
	meet(s, []*kubelet{k}, map[*kubelet][]criPod{k: pods})

	s.must(w.Stop())
	if out, err := w.Exec(t.Context(), "cri", "status"); err == nil || !strings.Contains(err.Error(), "weft up") {
		t.Errorf("without a daemon the node's status is %q, %v", out, err)
	}
	k.ask("down", pods[0].ID) // pods may end without weft
	s.must(w.Up("--reclaim-after", "2s"))
	s.must(w.WaitReady(within(t, startPatience), 1))
	s.must(runtimes.Poll(within(t, patience), func() error { return k.owns(pods[1:]) }))
	s.must(runtimes.Poll(within(t, patience), func() error {
		_, err := w.Exec(t.Context(), "cri", "status")
		return err
	}))
	k.ask("down", "-parallel", "5")
	s.must(k.owns(nil))
}
