package test

import (
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// mostPluginBytes is the budget of weft-cni, stripped: it is loaded for every pod.
const mostPluginBytes = 10 << 20

// The plugin asks the daemon, so it needs none of the libraries that the daemon works with.
func TestThePluginStaysSmall(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "weft-cni")
	cmd := exec.Command("go", "build", "-trimpath", "-tags=nethttpomithttp2,urfave_cli_no_docs", "-buildvcs=false", "-ldflags=-s -w", "-o", bin, "./cmd/weft-cni")
	cmd.Dir, cmd.Env = root(t), append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build weft-cni: %v\n%s", err, out)
	}
	st, err := os.Stat(bin)
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() > mostPluginBytes {
		t.Errorf("weft-cni has %s, the budget is %s", mebibytes(st.Size()), mebibytes(mostPluginBytes))
	}
	info, err := buildinfo.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range info.Deps {
		names = append(names, d.Path)
		for _, no := range []string{"memberlist", "vishvananda/netlink", "nftables", "bbolt", "urfave"} {
			if strings.Contains(d.Path, no) {
				t.Errorf("weft-cni links %s, which is the daemon's", d.Path)
			}
		}
	}
	t.Logf("weft-cni: %s, %s", mebibytes(st.Size()), strings.Join(names, " "))
}
