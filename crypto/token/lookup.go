package token

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// Lookup finds the text of a token that a person named on a command line: "-" reads stdin, "@FILE" reads a file, all else
// is the token itself. Spaces and line ends around it are removed; it is not parsed.
func Lookup(arg string, stdin io.Reader) (string, error) {
	switch name, isFile := strings.CutPrefix(arg, "@"); {
	case arg == "-":
		return read(stdin, "stdin")
	case isFile:
		f, err := os.Open(name)
		if err != nil {
			return "", fmt.Errorf("read token: %w", err)
		}
		defer f.Close() //nolint:errcheck // it was only read
		return read(f, name)
	}
	return strings.TrimSpace(arg), nil
}

func read(r io.Reader, name string) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, 4*MaxLength))
	if err != nil {
		return "", fmt.Errorf("read token from %s: %w", name, err)
	}
	s := strings.TrimSpace(string(b))
	if s == "" {
		return "", fmt.Errorf("read token from %s: it is empty", name)
	}
	return s, nil
}
