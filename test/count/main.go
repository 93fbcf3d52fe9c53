// Count runs one stage of `make test` and adds what it counted to a tally, so that several runs of go test end in one
// line. It prints a line per package, everything that a failed test said, and why tests were skipped; it always exits 0
// after a stage, since the stages behind it should run too. `count -sum` prints the last line and says by its exit status
// whether all was well.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// tally is one line of the tally file.
type tally struct {
	Stage   string   `json:"stage"`
	Passed  int      `json:"passed"`
	Failed  int      `json:"failed"`
	Skipped int      `json:"skipped"`
	Names   []string `json:"names,omitempty"` // of the failed
	Broken  string   `json:"broken,omitempty"`
	Seconds float64  `json:"seconds"`
}

func main() {
	file := flag.String("tally", ".build/tally", "file that the stages add to")
	stage := flag.String("stage", "", "name of the stage to run")
	sum := flag.Bool("sum", false, "print the count of all stages")
	flag.Parse()
	var err error
	code := 0
	if *sum {
		code, err = total(*file, os.Stdout)
	} else {
		err = runStage(*stage, *file, flag.Args())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "count:", err)
		code = 2
	}
	os.Exit(code)
}

func runStage(name, file string, args []string) error {
	if len(args) == 0 {
		return errors.New("no command to run")
	}
	fmt.Printf("== %s\n", name)
	start := time.Now()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	c := newCounter(os.Stdout)
	readErr := c.read(out)
	runErr := cmd.Wait()
	t := c.tally(name)
	t.Seconds = time.Since(start).Seconds()
	if runErr != nil && t.Failed == 0 {
		t.Broken = runErr.Error() // lint, or a package that did not build
	}
	fmt.Printf("== %s: %d passed, %d failed, %d skipped in %.0f s%s\n\n", name, t.Passed, t.Failed, t.Skipped, t.Seconds, because(t.Broken))
	return errors.Join(readErr, add(file, t))
}

func because(broken string) string {
	if broken == "" {
		return ""
	}
	return " (the command failed: " + broken + ")"
}

func add(file string, t tally) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(json.NewEncoder(f).Encode(t), f.Close())
}

// total prints the last line: `N passed, N failed, N skipped`. A stage that broke without a failed test counts as one.
func total(file string, w io.Writer) (code int, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 2, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	var all tally
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var t tally
		if err := json.Unmarshal(lines.Bytes(), &t); err != nil {
			return 2, err
		}
		if t.Broken != "" {
			t.Failed++
			t.Names = append(t.Names, "the command itself: "+t.Broken)
		}
		for _, n := range t.Names {
			_, _ = fmt.Fprintf(w, "failed in %s: %s\n", t.Stage, n)
		}
		all.Passed, all.Failed, all.Skipped = all.Passed+t.Passed, all.Failed+t.Failed, all.Skipped+t.Skipped
	}
	_, _ = fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", all.Passed, all.Failed, all.Skipped)
	if all.Failed > 0 || all.Passed == 0 {
		return 1, lines.Err()
	}
	return 0, lines.Err()
}
