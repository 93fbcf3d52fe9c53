package ipam

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func openBolt(t testing.TB, path string) *Bolt {
	t.Helper()
	b, err := OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBoltKeepsWhatMemoryKeeps(t *testing.T) {
	dir := t.TempDir()
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		path := filepath.Join(dir, fmt.Sprint(runs))
		m := newMemory()
		b, err := OpenBolt(path)
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 4).Draw(t, "commits") {
			var ops []Op
			for range rapid.IntRange(0, 4).Draw(t, "ops") {
				op := Op{Table: rapid.SampledFrom([]Table{tableMeta, tableGrant, tableClaim}).Draw(t, "table"), Key: []byte{rapid.Byte().Draw(t, "key") % 4}}
				if rapid.Bool().Draw(t, "put") {
					op.Value = rapid.SliceOfN(rapid.Byte(), 1, 8).Draw(t, "value")
				}
				ops = append(ops, op)
			}
			if err := errors.Join(m.Commit(ops), b.Commit(ops)); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if b, err = OpenBolt(path); err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		want, got := map[string]string{}, map[string]string{}
		for s, into := range map[Store]map[string]string{m: want, b: got} {
			if err := s.Load(func(table Table, key, value []byte) error {
				into[string(table)+string(key)] = string(value)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		if !maps.Equal(want, got) {
			t.Fatalf("have %v, want %v", got, want)
		}
	})
}

func TestBoltIsOneProcesses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.db")
	b := openBolt(t, path)
	defer b.Close()
	_, err := OpenBolt(path)
	if err == nil || err.Error() != "another weftd uses "+path+". Stop it, or give this one a --state of its own" {
		t.Error(err)
	}
}

func TestADamagedFileIsAnErrorNotACrash(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "good")
	b := openBolt(t, path)
	for i := range 200 {
		if err := b.Commit([]Op{{tableGrant, []byte{byte(i)}, make([]byte, 200)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		damage func(b []byte) []byte
	}{
		{"not a database", func([]byte) []byte { return []byte(strings.Repeat("hello ", 5000)) }},
		{"cut off", func(b []byte) []byte { return b[:3*4096] }},
		{"a short file", func(b []byte) []byte { return b[:100] }},
		{"pages of zeros", func(b []byte) []byte { clear(b[2*4096:]); return b }},
		{"pages of ones", func(b []byte) []byte {
			for i := 2 * 4096; i < len(b); i++ {
				b[i] = 0xff
			}
			return b
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, tt.name)
			if err := os.WriteFile(path, tt.damage(append([]byte(nil), good...)), 0o600); err != nil {
				t.Fatal(err)
			}
			b, err := OpenBolt(path)
			if err == nil {
				err = b.Load(func(Table, []byte, []byte) error { return nil })
				if err == nil {
					err = b.Commit([]Op{{tableGrant, []byte("new"), make([]byte, 5000)}})
				}
				_ = guard(path, b.Close)
			}
			if err == nil {
				t.Fatal("no error")
			}
			t.Log(err)
		})
	}
}

func TestANewerStoreIsRefused(t *testing.T) {
	for _, op := range []Op{
		{tableMeta, []byte(metaFormat), []byte{0x20}},
		{tableClaim, []byte{10, 0, 0, 2}, []byte{0x20}},
	} {
		c := newCluster(t, 1, "10.0.0.0/24", 28)
		n := c.nodes[0]
		if err := n.disk.Commit([]Op{op}); err != nil {
			t.Fatal(err)
		}
		if _, err := New(n.config()); err == nil || !strings.Contains(err.Error(), "was written by a newer weft") {
			t.Errorf("%s: %v", op.Table, err)
		}
	}
	// A newer minor version only adds.
	c := newCluster(t, 1, "10.0.0.0/24", 28)
	n := c.nodes[0]
	newer := putClaim(claim{Claim: Claim{Container: "c", IfName: "eth0", V4: addrOf("10.0.0.2")}})
	newer.Value[0]++
	newer.Value = append(newer.Value, 0, 99, 0, 0, 0, 1, 'x')
	if err := n.disk.Commit([]Op{newer, {"future", []byte("k"), []byte("v")}, {tableMeta, []byte("future"), []byte("v")}}); err != nil {
		t.Fatal(err)
	}
	a, err := New(n.config())
	if err != nil {
		t.Fatal(err)
	}
	if claims := a.Claims(); len(claims) != 1 || claims[0].Container != "c" {
		t.Errorf("%v", claims)
	}
}
