package main

import (
	"errors"
	"strings"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
)

// usage is a mistake in the command line itself.
func usage(message string, hint ...string) error {
	return &control.Error{Code: control.Usage, Message: message, Hint: strings.Join(hint, " ")}
}

// shownError is a failure that the result on stdout already tells, such as a check that failed: it sets the exit code
// and adds no words.
type shownError struct{}

func (*shownError) Error() string { return "shown" }

// sentence is what a person reads: what went wrong, why, what to do.
func sentence(err error, path []*cli.Command) string {
	e := *control.Explain(err)
	if e.Hint == "" && errors.Is(&e, control.Denied) {
		// The words of the command are enough: its arguments may hold a secret.
		line := []string{"sudo weft"}
		for _, c := range path {
			line = append(line, c.Name)
		}
		e.Hint = "Try: " + strings.Join(line, " ")
	}
	return e.Error()
}
