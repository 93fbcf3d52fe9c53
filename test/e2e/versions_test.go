package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"weft/test/cluster"
)

// newerMark is the content of a field that this weft does not know.
const newerMark = "said by a newer weft"

// newerEdits make the next minor version of weft: every message, record and stored value counts one higher, and those named
// here say something more. The compiler is given the edited files in place of the real ones (go build -overlay), so the
// product knows nothing of it.
var (
	newerVersions = regexp.MustCompile(`tlv\.Version\(0x10\)|tlv\.V\(1, 0\)`)
	newerEdits    = []struct{ file, old, new string }{
		{
			"mesh/record.go", // what a node says about itself
			"b = tlv.AppendUint16(b, recordTCPPort, rec.TCPPort)\n\t}\n",
			"b = tlv.AppendUint16(b, recordTCPPort, rec.TCPPort)\n\t}\n\tb = tlv.AppendString(b, 60000, MARK)\n",
		},
		{
			"crypto/identity/item.go", // certificates, tokens' records, delegations, revocations, applications
			"b := make([]byte, 0, itemHeader+len(body)",
			"body = tlv.AppendString(body, 60000, MARK)\n\tb := make([]byte, 0, itemHeader+len(body)",
		},
		{
			"mesh/join/message.go", // the request to join
			"return tlv.AppendString(b, 4, clip(q.build, maxBuild))",
			"return tlv.AppendString(tlv.AppendString(b, 4, clip(q.build, maxBuild)), 60000, MARK)",
		},
		{
			"crypto/noise/payload.go", // the first message of a handshake
			"return tlv.AppendUint16(dst, tagMTU, o.MTU)",
			"return tlv.AppendString(tlv.AppendUint16(dst, tagMTU, o.MTU), 60000, MARK)",
		},
		{
			"prog/weftd/membership.go", // a file
			"func (m *membership) append(b []byte) []byte {",
			"func (m *membership) append(b []byte) []byte { return tlv.AppendString(m.appendOlder(b), 60000, MARK) }\n\n" +
				"func (m *membership) appendOlder(b []byte) []byte {",
		},
	}
)

// buildNewer makes that version and returns the path of the program.
func buildNewer(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	replace := map[string]string{}
	edited := func(file string) string {
		if path := replace[filepath.Join(root, file)]; path != "" {
			file = path
		} else {
			file = filepath.Join(root, file)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	write := func(file, text string) {
		path := filepath.Join(dir, strings.ReplaceAll(file, "/", "-"))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(root, file)] = path
	}
	raised := 0
	for _, top := range []string{"cmd", "crypto", "ipam", "mesh", "prog", "router"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			old := edited(file)
			if now := newerVersions.ReplaceAllString(old, "tlv.Version(0x11)"); now != old {
				write(file, now)
				raised++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if raised < 8 {
		t.Fatalf("raised the version of %d files only: has it moved?", raised)
	}
	for _, e := range newerEdits {
		old := edited(e.file)
		if strings.Count(old, e.old) != 1 {
			t.Fatalf("%s no longer holds, once,\n%s\nthat this test edits", e.file, e.old)
		}
		write(e.file, strings.Replace(old, e.old, strings.ReplaceAll(e.new, "MARK", fmt.Sprintf("%q", newerMark)), 1))
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "weft")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-overlay", list, "-o", program, "weft/cmd/weft")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the newer weft: %v\n%s", err, out)
	}
	return program
}

// A newer weft joins a cluster of older ones and admits another; machines are upgraded and downgraded under load, daemon
// and data plane one after the other. Nothing is lost, and what the older do not understand they keep.
func TestVersionsMix(t *testing.T) {
	t.Parallel() // it mostly builds and waits
	s := tell(t)
	newer := buildNewer(t)
	older := s.a.Weft
	s.c.Weft = newer
	d := s.site("d")
	s.machines = s.machines[:3]
	s.form()
	pods := s.pods()
	s.connected(pods)
	s.must(cluster.Poll(s.within(patience), func() error {
		b, err := os.ReadFile(filepath.Join(s.a.State(), "records"))
		if err == nil && !bytes.Contains(b, []byte(newerMark)) {
			err = fmt.Errorf("the older %s does not keep what the newer %s says", s.a, s.c)
		}
		return err
	}))

	// The newer one admits an older one.
	token, _ := s.create(s.c)
	s.must(d.Up("--join", token))
	s.machines = append(s.machines, d)
	s.whole()
	s.distinct()

	change := func(m *cluster.Machine, program string) {
		t.Helper()
		began := time.Now()
		flood := s.flood(pods[0].Host, pods[2].Addrs[0].String(), 2*time.Second)
		wire := m.Wire()
		s.must(m.Stop())
		m.Weft = program
		s.must(m.Up())
		s.whole()
		s.took(fmt.Sprintf("%s changed to %s", m, filepath.Base(filepath.Dir(program))), began)
		if now := m.Wire(); now != wire {
			t.Errorf("the wire of %s was process %d and is %d", m, wire, now)
		}
		if lost, report := flood(); lost > 0 {
			t.Errorf("%s changed: %s", m, report)
		}
		// The data plane follows.
		s.must(m.KillWire(s.within(patience)))
		s.whole()
		s.connected(pods)
	}
	change(s.a, newer)
	change(s.c, older)
	change(s.a, older)
	s.distinct()
	s.oneRing(s.machines...)
	for _, p := range pods {
		before := fmt.Sprint(p.Addrs)
		s.must(p.Attach())
		if now := fmt.Sprint(p.Addrs); now != before {
			t.Errorf("%s had %s and has %s", p, before, now)
		}
	}
}
