package runtimes_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/test/netlab"
	"weft/test/runtimes"
)

func TestNodeIsAMachineOfItsOwn(t *testing.T) {
	lab := netlab.New(t)
	a, b := lab.Host("a"), lab.Host("b")
	lab.Link(a.Port("eth0", "198.18.1.1/24"), b.Port("eth0", "198.18.1.2/24"))
	n := runtimes.New(t, a)
	ctx := within(t, patience)
	say := func(script string) string {
		t.Helper()
		out, err := n.Exec(ctx, "sh", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	if got := say("hostname"); got != "a" {
		t.Errorf("hostname is %q", got)
	}
	if got := say("ls /sys/class/net"); !strings.Contains(got, "eth0") {
		t.Errorf("devices are %q", got)
	}
	if got := say("cut -d: -f3 /proc/self/cgroup | sort -u"); got != "/" && got != "/init" {
		t.Errorf("control groups are %q", got)
	}
	say("echo one >/etc/weft-node-was-here; echo two >/run/two; mkdir -p /var/lib/containerd/three; ip link add veth7 type veth")
	if _, err := os.Stat("/etc/weft-node-was-here"); err == nil {
		t.Error("the node wrote to the machine's /etc")
	}
	sleeper := n.Command("sh", "-c", "trap '' TERM; sleep 1000 & wait")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := sleeper.Wait(); err == nil || sleeper.ExitCode() != -1 {
		t.Errorf("a process outlived its node: %v", err)
	}
	if _, err := n.Exec(ctx, "true"); err == nil {
		t.Error("a node that is off runs programs")
	}
	if err := n.Boot(); err != nil {
		t.Fatal(err)
	}
	if got := say("cat /etc/weft-node-was-here; ls -d /var/lib/containerd/three /run/two /sys/class/net/veth7 2>/dev/null || true"); got != "one\n/var/lib/containerd/three" {
		t.Errorf("after a power cut there is %q", got)
	}
	if err := n.WriteFile("/opt/x/y", []byte("#!/bin/sh\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := n.Command("/opt/x/y").In("text")
	if err := c.Run(); err == nil || c.ExitCode() != 3 {
		t.Errorf("exit code %d, %v", c.ExitCode(), err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/weft-node-*" + lab.Name() + "*"); len(left) > 0 {
		t.Errorf("control groups stay: %v", left)
	}
}
