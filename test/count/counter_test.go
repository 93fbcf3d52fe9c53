package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
)

// A run of go test with everything that can happen in one.
const run = `not json passes through
{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestGood"}
{"Action":"pass","Package":"p","Test":"TestGood","Elapsed":0}
{"Action":"run","Package":"p","Test":"TestTable"}
{"Action":"run","Package":"p","Test":"TestTable/one"}
{"Action":"run","Package":"p","Test":"TestTable/two"}
{"Action":"output","Package":"p","Test":"TestTable/two","Output":"    p_test.go:9: two went wrong\n"}
{"Action":"pass","Package":"p","Test":"TestTable/one","Elapsed":0}
{"Action":"fail","Package":"p","Test":"TestTable/two","Elapsed":0}
{"Action":"fail","Package":"p","Test":"TestTable","Elapsed":0}
{"Action":"run","Package":"p","Test":"TestRoot"}
{"Action":"output","Package":"p","Test":"TestRoot","Output":"    p_test.go:12: needs root\n"}
{"Action":"skip","Package":"p","Test":"TestRoot","Elapsed":0}
{"Action":"fail","Package":"p","Elapsed":0.1}
{"Action":"build-output","ImportPath":"q [q.test]","Output":"q.go:1: undefined: x\n"}
{"Action":"build-fail","ImportPath":"q [q.test]"}
{"Action":"start","Package":"q"}
{"Action":"fail","Package":"q","Elapsed":0,"FailedBuild":"q [q.test]"}
{"Action":"run","Package":"r","Test":"TestHangs"}
{"Action":"output","Package":"r","Test":"TestHangs","Output":"panic: test timed out\n"}
{"Action":"fail","Package":"r","Elapsed":9}
{"Action":"skip","Package":"empty","Elapsed":0}
{"Action":"run","Package":"s","Test":"TestParent"}
{"Action":"run","Package":"s","Test":"TestParent/child"}
{"Action":"pass","Package":"s","Test":"TestParent/child","Elapsed":0}
{"Action":"fail","Package":"s","Test":"TestParent","Elapsed":0}
{"Action":"fail","Package":"s","Elapsed":0}
{"Action":"run","Package":"u","Test":"TestSlow"}
{"Action":"pass","Package":"u","Test":"TestSlow","Elapsed":12.3}
{"Action":"output","Package":"u","Output":"goleak: Errors on successful test run\n"}
{"Action":"fail","Package":"u","Elapsed":12.4}
`

func TestCountsWhatHappened(t *testing.T) {
	var screen bytes.Buffer
	c := newCounter(&screen)
	if err := c.read(strings.NewReader(run)); err != nil {
		t.Fatal(err)
	}
	got := c.tally("unit")
	if got.Passed != 4 || got.Failed != 5 || got.Skipped != 1 {
		t.Errorf("%d passed, %d failed, %d skipped", got.Passed, got.Failed, got.Skipped)
	}
	if names := strings.Join(got.Names, "; "); names != "p TestTable/two; q; r; s TestParent; u" {
		t.Errorf("failed: %s", names)
	}
	for _, want := range []string{
		"not json passes through\n", "two went wrong", "undefined: x", "panic: test timed out", "skipped 1: needs root", "FAIL  p ",
		"goleak: Errors", "slowest: TestSlow 12 s\n",
	} {
		if !strings.Contains(screen.String(), want) {
			t.Errorf("does not say %q:\n%s", want, screen.String())
		}
	}
}

func TestTotalDecides(t *testing.T) {
	for name, test := range map[string]struct {
		stages []tally
		code   int
		last   string
	}{
		"all well":        {[]tally{{Stage: "lint"}, {Stage: "unit", Passed: 3, Skipped: 1}}, 0, "3 passed, 0 failed, 1 skipped\n"},
		"a failed test":   {[]tally{{Passed: 3, Failed: 1, Names: []string{"p TestX"}}}, 1, "3 passed, 1 failed, 0 skipped\n"},
		"lint failed":     {[]tally{{Stage: "lint", Broken: "exit status 1"}, {Passed: 3}}, 1, "3 passed, 1 failed, 0 skipped\n"},
		"nothing was run": {[]tally{{Stage: "lint"}}, 1, "0 passed, 0 failed, 0 skipped\n"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "tally")
			for _, s := range test.stages {
				if err := add(file, s); err != nil {
					t.Fatal(err)
				}
			}
			var out bytes.Buffer
			code, err := total(file, &out)
			if err != nil || code != test.code || !strings.HasSuffix(out.String(), test.last) {
				t.Errorf("code %d, %v\n%s", code, err, out.String())
			}
		})
	}
}
