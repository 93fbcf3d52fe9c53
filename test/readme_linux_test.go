package test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/test/netlab"
)

// The README leads two machines into a cluster. This test types its blocks, word for word, on two machines.
const (
	onFirst  = "sudo weft up --init"
	onSecond = "sudo weft status\nsudo ip netns add web\nsudo weft attach web"
)

// asTyped runs a block as root would on a machine of its own: sudo is nothing to ask for, and the names of namespaces are
// the machine's own. The daemon of the block, started by the line that is not in it, is in the same machine.
const asTyped = `
set -euo pipefail
sudo() { "$@"; }
mount -t tmpfs tmpfs /run/netns
%s &
until weft status 2>/dev/null | grep -q '2 of 2 alive'; do sleep 0.05; done
%s
echo typed
wait`

func TestReadmeLeadsToTwoMachinesInACluster(t *testing.T) {
	lab := netlab.New(t)
	b, err := os.ReadFile(filepath.Join(root(t), "README.md"))
	if err != nil {
		t.Skip("there is no README yet")
	}
	for _, block := range []string{onFirst, onSecond} {
		if !slices.ContainsFunc(snippets("README.md", string(b)), func(s snippet) bool { return strings.Join(s.lines, "\n") == block }) {
			t.Fatalf("the README no longer holds the block\n%s\nthat this test types; type here what it says now", block)
		}
	}
	weft := buildWeft(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s := netlab.ThreeSites(lab)
	bash := func(h *netlab.Host, script string) *netlab.Cmd {
		t.Helper()
		c := h.Command("bash", "-c", script).PrivateMounts().Env(
			"PATH="+filepath.Dir(weft)+":"+os.Getenv("PATH"),
			"WEFT_STATE="+h.Dir()+"/state", "WEFT_SOCKET="+h.Dir()+"/weft.sock")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := bash(s.A, `sudo() { "$@"; }; `+onFirst)
	line, err := first.WaitOutput(ctx, `weft up --join weft1[a-z2-7]+`)
	if err != nil {
		t.Fatal(err)
	}
	second := bash(s.B, fmt.Sprintf(asTyped, line[0], onSecond))
	if _, err := second.WaitOutput(ctx, `(?m)^typed$`); err != nil {
		t.Fatal(err)
	}
	// The last words of the block are the pod's addresses, and the first machine reaches them.
	words := strings.Fields(second.Stdout())
	var pod []netip.Addr
	for _, w := range words[max(0, len(words)-3):] {
		if a, err := netip.ParseAddr(w); err == nil {
			pod = append(pod, a)
		}
	}
	if len(pod) == 0 {
		t.Fatalf("attach printed no address:\n%s", second.Stdout())
	}
	for _, a := range pod {
		if err := s.A.WaitPing(ctx, a); err != nil {
			t.Error(err)
		}
	}
}
