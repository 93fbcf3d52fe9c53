package install

import (
	"os"
	"runtime"
	"strings"
	"testing"
)

// The page about installing is typed on a machine; test/docs_test.go sees to it that the script has the page's lines.
func TestPageIsTyped(t *testing.T) {
	s := newSite(t)
	_, token := s.found()
	r := s.room("n2", "systemd")
	typed := strings.NewReplacer("weft1…", token, "https://downloads.example.org", s.url+"/dist", "amd64", runtime.GOARCH).
		Replace(string(read(t, "testdata/page.sh")))
	r.write("/run/shims/sudo", "#!/bin/sh\nexec env \"$@\"\n")
	r.write("/run/page.sh", typed)
	was := r.look()
	if out, err := r.sh("PATH=/run/shims:$PATH sh /run/page.sh"); err != nil {
		t.Fatal(err)
	} else if os.Getenv("WEFT_TEST_LONG") != "" {
		t.Log(out)
	}
	r.same(was, "the page")
}
