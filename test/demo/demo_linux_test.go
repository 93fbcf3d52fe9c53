package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/test/netlab"
)

// setUp builds the programs and names a lab of the test's own, so that a demo of a person may run beside it.
func setUp(t *testing.T) options {
	t.Helper()
	netlab.New(t) // skips without the rights
	dir := t.TempDir()
	if err := netlab.Build(dir, "weft/cmd/weft", "weft/test/labprobe"); err != nil {
		t.Fatal(err)
	}
	o := options{
		name: fmt.Sprintf("demo%d", os.Getpid()), weft: filepath.Join(dir, "weft"), probe: filepath.Join(dir, "labprobe"),
		stream: time.Second,
	}
	t.Cleanup(func() {
		if _, err := netlab.Remove(o.name); err != nil {
			t.Error(err)
		}
	})
	return o
}

func leftovers(name string) []string {
	spaces, _ := filepath.Glob("/run/netns/" + name + "-*")
	dirs, _ := filepath.Glob("/run/netlab/" + name)
	return append(spaces, dirs...)
}

func TestDemoWorksAndLeavesNothing(t *testing.T) {
	o := setUp(t)
	var out bytes.Buffer
	if err := run(t.Context(), &screen{out: &out}, o); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{"144 of 144", "96 pages", "packets show a pod's address", "Mbit/s", "All of it worked", "Try next"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the demo does not say %q", want)
		}
	}
	if left := leftovers(o.name); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	t.Log("\n" + out.String())
}

func TestDemoIsKeptAndRemoved(t *testing.T) {
	o := setUp(t)
	o.keep = true
	var out bytes.Buffer
	if err := run(t.Context(), &screen{out: &out}, o); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if !strings.Contains(out.String(), "make demo-clean") || len(leftovers(o.name)) < 11 {
		t.Errorf("kept %v\n%s", leftovers(o.name), out.String())
	}
	if err := run(t.Context(), &screen{out: io.Discard}, o); err == nil || !strings.Contains(err.Error(), "make demo-clean") {
		t.Errorf("a second demo beside a kept one: %v", err)
	}
	o.clean = true
	if err := run(t.Context(), &screen{out: io.Discard}, o); err != nil {
		t.Error(err)
	}
	if left := leftovers(o.name); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// interruptAfter is a screen's writer that ends the demo when it has shown a line.
type interruptAfter struct {
	mu   sync.Mutex
	text string
	stop context.CancelFunc
	all  strings.Builder
}

func (w *interruptAfter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all.Write(p); strings.Contains(w.all.String(), w.text) {
		w.stop()
	}
	return len(p), nil
}

func TestInterruptedDemoLeavesNothing(t *testing.T) {
	o := setUp(t)
	for _, text := range []string{"three hosts, a router", "--init", "attach", "nothing in clear"} {
		t.Run(text, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			w := &interruptAfter{text: text, stop: cancel}
			if err := run(ctx, &screen{out: w}, o); err == nil {
				t.Errorf("it came to its end:\n%s", w.all.String())
			}
			if left := leftovers(o.name); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestFailedDemoShowsTheLastWordsOfTheDaemons(t *testing.T) {
	o := setUp(t)
	o.weft = filepath.Join(t.TempDir(), "weft")
	script := "#!/bin/sh\n[ $1 = up ] || exit 3\necho 'level=ERROR msg=\"the reason\"' >&2\nexit 1\n"
	if err := os.WriteFile(o.weft, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := run(t.Context(), &screen{out: &out}, o)
	if err == nil || errors.Is(err, context.Canceled) || !strings.Contains(out.String(), "the reason") {
		t.Errorf("%v\n%s", err, out.String())
	}
	if left := leftovers(o.name); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
