package ring

import (
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

// TestGoldenState holds the bytes of the wire format: a state of three grants of a cluster with known keys.
func TestGoldenState(t *testing.T) {
	w := newWorld(t, 3, pool("10.32.0.0/12", 26))
	r := New(w.u)
	r, _ = w.grant(t, r, 0, "10.40.0.0/13", 1)
	r, _ = w.grant(t, r, 1, "10.44.0.0/14", 2)
	r, _ = w.grant(t, r, 0, "10.36.0.0/14", 2)
	golden(t, "state.golden", r)
}

// TestGoldenView holds the bytes of a view: the same state after the second member's removal, and a grant by the heir.
func TestGoldenView(t *testing.T) {
	w := newWorld(t, 3, pool("10.32.0.0/12", 26))
	r := New(w.u)
	r, _ = w.grant(t, r, 0, "10.40.0.0/13", 1)
	r, _ = w.grant(t, r, 1, "10.44.0.0/14", 2)
	r, _ = w.takeOver(t, r, 0, 1, 1)
	r, _ = w.grant(t, r, 2, "10.42.0.0/15", 0)
	golden(t, "view.golden", r)
}

func golden(t *testing.T, name string, r *Ring) {
	t.Helper()
	got := hex.Dump(r.Encode()) + "digest " + hex.EncodeToString(r.Digest()) + "\n"
	want, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if got != strings.ReplaceAll(string(want), "\r", "") {
		t.Errorf("another encoding than the one in use:\n%s", got)
	}
}
