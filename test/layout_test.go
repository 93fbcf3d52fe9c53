package test

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "weft/"

// A direction says what a package, and those below it that have no line of their own, may import of ours.
type direction struct {
	pkg string
	may []string // with /... for what is below, too
	why string
}

var directions = []direction{
	{"crypto", []string{"crypto/tlv", "mesh/peer"}, "crypto is leaves: each can be read, fuzzed and replaced alone"},
	{"crypto/token", []string{"crypto/tlv", "crypto/identity", "mesh/peer"}, "a token holds what identity defines, nothing else"},
	{"crypto/tlv", nil, "the encoding knows nothing of what it encodes"},

	{"mesh", []string{"mesh/...", "crypto/..."}, "membership knows nothing of addresses and packets: prog/weftd/glue.go joins them"},
	{"mesh/peer", nil, "the shared vocabulary lies below everything"},
	{"mesh/circuit", []string{"mesh/peer", "mesh/lobby", "crypto/..."}, "a circuit is a stream between two members; who is a member, others say"},
	{"mesh/lobby", nil, "it counts callers, whatever they call for"},
	{"mesh/join", []string{"mesh/peer", "mesh/circuit", "mesh/lobby", "crypto/..."}, "joining ends where membership begins"},
	{"mesh/meshsim", []string{"mesh", "mesh/circuit", "mesh/sparse", "mesh/peer", "crypto/identity"}, "it plays the mesh, and makes all else itself"},
	{"mesh/sparse", []string{"mesh/peer"}, "who is worth a session is a pure machine"},
	{"mesh/meshtest", []string{"mesh/peer"}, "the network of the tests must not know what runs on it"},
	{"mesh/path", []string{"mesh/peer"}, "the choice of a path is a pure machine"},

	{"ipam", []string{"ipam/...", "mesh/peer", "crypto/..."}, "addresses know nothing of gossip and packets: prog/weftd/glue.go joins them"},
	{"ipam/ipamsim", []string{"ipam", "ipam/ring", "mesh/peer"}, "the simulator drives ipam by what any program can call, and makes all else itself"},
	{"ipam/ring", []string{"mesh/peer", "crypto/..."}, "the ring is a pure CRDT"},
	{"ipam/space", []string{"ipam/ring", "mesh/peer"}, "free addresses are counted, not agreed on"},

	{"router", []string{"router/host", "mesh/peer", "crypto/..."}, "transports import router, never the reverse; routing knows nothing of gossip and addresses"},
	{"router/host", []string{"mesh/peer"}, "system calls are made here and decided on elsewhere"},
	{"router/host/hosttest", []string{"router/host", "mesh/peer"}, "the fake stands in for host alone"},
	{"router/pulse", []string{"router", "router/host", "mesh/peer", "crypto/..."}, "whether a tunnel works is asked by several transports"},
	{"router/vxlan", []string{"router", "router/host", "router/pulse", "crypto/...", "mesh/peer"}, "a transport knows its own tunnels only"},
	{"router/sleeve", []string{"router", "router/host", "crypto/...", "mesh/peer", "mesh/path", "mesh/sparse"}, "a transport knows its own tunnels only, and the sleeve the ways that they take (0019) and who is worth a session"},
	{"router/wireguard", []string{"router", "router/host", "router/pulse", "crypto/...", "mesh/peer"}, "a transport knows its own tunnels only"},

	{"prog/control", nil, "the command line and the container runtime link it, so it costs nothing"},
	{"prog/control/controltest", []string{"prog/control"}, "the same"},
	{"prog/wire", []string{"router", "router/sleeve", "crypto/...", "mesh/peer", "mesh/path", "mesh/lobby"}, "the data plane outlives the daemon and must not need it"},
	{
		"prog/weftd",
		[]string{"mesh/...", "ipam/...", "router/...", "crypto/...", "prog/wire", "prog/control", "plugin/docker"},
		"the daemon joins the parts and is imported by programs only",
	},

	{"plugin/docker", nil, "it answers dockerd with what its Node does; how a machine does it is the daemon's"},

	{"plugin/cni", []string{"prog/control"}, "the runtime starts it for every pod: it translates, and the daemon does the work"},
	{"cmd/weft-cni", []string{"plugin/cni", "prog/control"}, "the program that runtimes start has nothing in it that they do not need"},

	{"prog/drawing", []string{"prog/control"}, "a picture is made of an answer, and of nothing else"},

	{"prog/release", nil, "what people download is made of files, whatever the programs are"},

	{"cmd", []string{"prog/weftd", "prog/wire", "prog/control", "prog/drawing", "crypto/token"}, "a command parses, asks and renders; what it asks for lives in prog"},
	{"test", []string{"..."}, "tests may look at everything"},
}

// Test files may also import the laboratories.
var laboratories = []string{"test/netlab", "test/corpus", "mesh/meshtest", "ipam/ipamsim", "router/host/...", "prog/control/controltest"}

// A home is the only place of a third-party module. What is not listed has no place at all.
type home struct {
	module string
	lives  []string
	use    string // what others use instead
}

var homes = []home{
	{"github.com/vishvananda/netlink", []string{"router/host", "test/netlab"}, "router/host"},
	{"github.com/vishvananda/netns", []string{"router/host", "test/netlab"}, "router/host"},
	{"github.com/mdlayher/netlink", []string{"router/host"}, "router/host"},
	{"github.com/google/nftables", []string{"router/host", "test/netlab"}, "router/host"},
	{"github.com/hashicorp/memberlist", []string{"mesh"}, "mesh"},
	{"go.etcd.io/bbolt", []string{"ipam"}, "the store of ipam"},
	{"github.com/flynn/noise", []string{"crypto/noise"}, "crypto/noise"},
	{"github.com/gaissmai/bart", []string{"router/sleeve"}, "router/sleeve"},
	{"github.com/containernetworking/cni", []string{"plugin/cni"}, "plugin/cni: only it speaks to container runtimes"},
	{"github.com/urfave/cli", []string{"cmd"}, "cmd: only commands talk to people"},
	{"go.yaml.in/yaml", []string{"prog/weftd"}, "prog/weftd"},
	{"golang.zx2c4.com/wireguard/wgctrl", []string{"router/wireguard", "test/bench"}, "router/wireguard"},
	{"golang.zx2c4.com/wireguard", []string{"prog/wire", "test/bench"}, "the wire, which runs it"},
	{"rsc.io/qr", []string{"cmd"}, "cmd: only commands draw"},
	{"golang.org/x/crypto", []string{"crypto"}, "crypto"},
	{"golang.org/x/term", []string{"cmd", "test/demo"}, "cmd: only commands know terminals"},
	{"golang.org/x/net", []string{"router", "prog/weftd", "test"}, "the standard library"},
	{"golang.org/x/sync", []string{"prog", "mesh", "ipam", "router"}, "sync"},
	{
		"golang.org/x/sys",
		[]string{"router/host", "router/sleeve", "prog/wire", "prog/weftd", "prog/control", "cmd", "crypto/seal", "test"},
		"router/host: all system calls in one place",
	},
}

// goPackage is what `go list -json` says, as far as it matters here.
type goPackage struct {
	ImportPath, Dir, Doc, Name         string
	Imports, TestImports, XTestImports []string
	GoFiles, TestGoFiles, XTestGoFiles []string
}

func (p goPackage) name() string { return strings.TrimPrefix(p.ImportPath, module) }

// listPackages reads the whole module. Linux is asked for so that the answer is the same everywhere.
func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,Doc,Name,Imports,TestImports,XTestImports,GoFiles,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir, cmd.Env = root(t), append(os.Environ(), "GOOS=linux")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// within reports whether pkg is pattern or, with /..., below it.
func within(pkg, pattern string) bool {
	base, deep := strings.CutSuffix(pattern, "...")
	base = strings.TrimSuffix(base, "/")
	return pkg == base || deep && (base == "" || strings.HasPrefix(pkg, base+"/"))
}

func anyWithin(pkg string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return within(pkg, p) })
}

// directionOf finds the line for a package: its own or that of the nearest folder above.
func directionOf(pkg string) (direction, bool) {
	for p := pkg; p != "."; p = filepath.Dir(p) {
		for _, d := range directions {
			if d.pkg == p {
				return d, true
			}
		}
	}
	return direction{}, false
}

func TestPackagesImportInOneDirection(t *testing.T) {
	for _, p := range listPackages(t) {
		d, ok := directionOf(p.name())
		if !ok {
			t.Errorf("%s has no line in the table of directions: say there what it may import, and why", p.name())
			continue
		}
		for _, imp := range p.Imports {
			if ours, ok := strings.CutPrefix(imp, module); ok && !anyWithin(ours, d.may) {
				t.Errorf("%s must not import %s: %s", p.name(), ours, d.why)
			}
		}
		for _, imp := range slices.Concat(p.TestImports, p.XTestImports) {
			ours, ok := strings.CutPrefix(imp, module)
			if ok && ours != p.name() && !anyWithin(ours, d.may) && !anyWithin(ours, laboratories) && !within(ours, p.name()+"/...") {
				t.Errorf("tests of %s must not import %s: %s", p.name(), ours, d.why)
			}
		}
	}
}

func TestNobodyImportsTheProgramsAndTests(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, imp := range p.Imports {
			ours, ok := strings.CutPrefix(imp, module)
			switch {
			case !ok:
			case within(ours, "cmd/..."):
				t.Errorf("%s imports %s: programs are run, not imported", p.name(), ours)
			case within(ours, "test/...") && !within(p.name(), "test/..."):
				t.Errorf("%s imports %s: the product does not know its tests", p.name(), ours)
			case slices.Contains(laboratories, ours) && !within(p.name(), "test/...") && p.name() != ours:
				t.Errorf("%s imports %s outside its tests", p.name(), ours)
			}
		}
	}
}

func TestThirdPartyModulesHaveOneHome(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, imp := range p.Imports {
			first, _, _ := strings.Cut(imp, "/")
			if !strings.Contains(first, ".") {
				continue // ours, or the standard library
			}
			i := slices.IndexFunc(homes, func(h home) bool { return imp == h.module || strings.HasPrefix(imp, h.module+"/") })
			switch {
			case i < 0:
				t.Errorf("%s imports %s, which has no home: add a line to the table, with what it is for", p.name(), imp)
			case !slices.ContainsFunc(homes[i].lives, func(l string) bool { return within(p.name(), l+"/...") }):
				t.Errorf("%s imports %s: use %s instead", p.name(), imp, homes[i].use)
			}
		}
	}
}

func TestPackagesSayWhatTheyAre(t *testing.T) {
	for _, p := range listPackages(t) {
		if len(p.GoFiles) > 0 && strings.TrimSpace(p.Doc) == "" {
			t.Errorf("%s has no package comment: what does it do, and what does it leave to others?", p.name())
		}
		if p.Name == "main" || p.Name == "test" || len(p.GoFiles) == 0 {
			continue
		}
		if want := filepath.Base(p.Dir); p.Name != want {
			t.Errorf("%s is called %s inside", p.name(), p.Name)
		}
	}
}

func TestNamesSaySomething(t *testing.T) {
	empty := []string{"util", "utils", "common", "types", "helper", "helpers", "misc", "base", "shared", "internal"}
	for _, p := range listPackages(t) {
		if slices.Contains(empty, filepath.Base(p.name())) {
			t.Errorf("%s: a package is a noun that a user of the field recognises", p.name())
		}
		for _, f := range slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles) {
			stem, _, _ := strings.Cut(strings.TrimSuffix(f, ".go"), "_")
			if slices.Contains(empty, stem) {
				t.Errorf("%s/%s: a file is named after what it holds", p.name(), f)
			}
		}
	}
}

func TestNoInitAndNoEmptyFolders(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, f := range p.GoFiles {
			b, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(b, []byte("\nfunc init()")) {
				t.Errorf("%s/%s has an init: explicit lists show what happens at a glance", p.name(), f)
			}
		}
	}
	err := filepath.WalkDir(root(t), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if slices.Contains([]string{".git", ".build", "bin", "fuzz"}, d.Name()) {
			return fs.SkipDir
		}
		entries, err := os.ReadDir(path)
		if err == nil && len(entries) == 0 {
			t.Errorf("%s is empty: folders appear with their first real code", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

const (
	mostBytes   = 20 << 20 // of the daemon, stripped
	mostModules = 45       // linked into it
)

func TestTheDaemonStaysSmall(t *testing.T) {
	if _, err := os.Stat(filepath.Join(root(t), "cmd/weft")); err != nil {
		t.Skip("there is no cmd/weft")
	}
	bin := filepath.Join(t.TempDir(), "weft")
	cmd := exec.Command("go", "build", "-trimpath", "-tags=nethttpomithttp2,urfave_cli_no_docs", "-buildvcs=false", "-ldflags=-s -w", "-o", bin, "./cmd/weft")
	cmd.Dir, cmd.Env = root(t), append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build weft: %v\n%s", err, out)
	}
	st, err := os.Stat(bin)
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() > mostBytes {
		t.Errorf("weft has %s, the budget is %s", mebibytes(st.Size()), mebibytes(mostBytes))
	}
	info, err := buildinfo.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(info.Deps); n > mostModules {
		var names []string
		for _, d := range info.Deps {
			names = append(names, d.Path)
		}
		t.Errorf("weft links %d modules, the budget is %d: %s", n, mostModules, strings.Join(names, " "))
	}
	t.Logf("weft: %s, %d modules", mebibytes(st.Size()), len(info.Deps))
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
