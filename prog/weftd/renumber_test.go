package weftd

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"weft/ipam"
	"weft/prog/control"
	"weft/router"
)

func TestStraysKeepTheirInterfaceWithoutAnAddress(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.32.0.7"), netip.MustParseAddr("fd00::a20:7")
	other := netip.MustParseAddr("10.40.0.9")
	stray := ipam.Claim{V4: other, V6: v6, Container: "b", IfName: "eth0", NetNS: "/run/netns/b"}
	got := podsOf([]ipam.Claim{
		{V4: v4, V6: v6, Container: "a", IfName: "eth0", NetNS: "/run/netns/a"},
		stray,
		{V4: netip.MustParseAddr("10.32.0.8"), Container: "kept", IfName: ipam.NoInterface},
	}, []ipam.Claim{stray})
	want := []router.Pod{{Name: "a", IfName: "eth0", V4: v4, V6: v6}, {Name: "b", IfName: "eth0"}}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Error(d)
	}
}

func TestWhatIsGivenUpByHand(t *testing.T) {
	claims := []ipam.Claim{
		{V4: netip.MustParseAddr("10.32.0.7"), V6: netip.MustParseAddr("fd00::a20:7"), Container: "web", IfName: "eth0", NetNS: "/run/netns/web"},
		{V4: netip.MustParseAddr("10.32.0.8"), V6: netip.MustParseAddr("fd00::a20:8"), Container: "kept", IfName: ipam.NoInterface},
		{V4: netip.MustParseAddr("10.32.0.9"), Container: "web", IfName: ipam.NoInterface},
	}
	for what, want := range map[string]string{"kept": "10.32.0.8", "10.32.0.8": "10.32.0.8", "fd00::a20:8": "10.32.0.8", "web": "10.32.0.9"} {
		if c, err := keptByHand(claims, what); err != nil || c.V4.String() != want {
			t.Errorf("%s: %v, %v", what, c.V4, err)
		}
	}
	for what, want := range map[string]error{"10.32.0.7": control.Conflict, "nobody": control.NotFound, "10.32.0.99": control.NotFound} {
		if _, err := keptByHand(claims, what); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
}

func TestANamespaceOfTheSameNameIsAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := namespaceID(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		c    ipam.Claim
		same bool
	}{
		{"the same", ipam.Claim{NetNS: path, Inode: id.ino}, true},
		{"not known which", ipam.Claim{NetNS: path}, true},
		{"another under the same name", ipam.Claim{NetNS: path, Inode: id.ino + 1}, false},
		{"gone", ipam.Claim{NetNS: path + "x", Inode: id.ino}, false},
	} {
		if err := sameNamespace(tt.c); (err == nil) != tt.same {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestAWiderPoolThatWorks(t *testing.T) {
	for _, tt := range []struct {
		pool  string
		nodes int
		want  string
	}{
		{"10.9.0.0/24", 100, "10.9.0.0/18"},
		{"10.9.8.0/24", 100, "10.9.0.0/18"},
		{"10.32.0.0/16", 600, "10.32.0.0/15"},
	} {
		if got, ok := widerPool(netip.MustParsePrefix(tt.pool), tt.nodes); !ok || got.String() != tt.want {
			t.Errorf("%s for %d nodes: %v, %v, want %s", tt.pool, tt.nodes, got, ok, tt.want)
		}
	}
	if got, ok := widerPool(netip.MustParsePrefix("10.0.0.0/8"), 1<<20); ok {
		t.Errorf("a million nodes in %s", got)
	}
}
