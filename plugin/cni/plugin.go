package cni

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/version"

	"weft/prog/control"
)

// NameIPAM is the file name under which the program lends addresses.
const NameIPAM = "weft-ipam"

// supported are the versions of the specification. 0.3.0 differs from 0.3.1 in nothing that is said here.
var supported = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// Time limits are below those of the runtimes (the kubelet gives a sandbox four minutes, and other requests two), so that
// our reason is heard and not theirs.
const (
	changeTime = 45 * time.Second
	waitTime   = 20 * time.Second // of that, for an address
	readTime   = 10 * time.Second
	stdinTime  = 5 * time.Second
)

// maxInput bounds what a runtime may say. A result of a long chain has some kilobytes.
const maxInput = 1 << 20

// Daemon is what the plugin asks.
type Daemon interface {
	Attach(ctx context.Context, r control.AttachRequest) (control.AttachReply, error)
	Detach(ctx context.Context, r control.DetachRequest) (control.DetachReply, error)
	Check(ctx context.Context, r control.CheckRequest) (control.CheckReply, error)
	Lend(ctx context.Context, r control.LendRequest) (control.LendReply, error)
	Collect(ctx context.Context, r control.CollectRequest) (control.CollectReply, error)
	Ready(ctx context.Context) (control.ReadyReply, error)
}

var _ Daemon = (*control.Client)(nil)

// Plugin is one call.
type Plugin struct {
	Program string              // as it was called: os.Args[0]
	Build   string              // version of weft
	Getenv  func(string) string // the runtime's words
	Stdin   io.Reader           // the configuration
	Stdout  io.Writer           // the result, or the error
	Stderr  io.Writer           // words for people
	Dial    func(socket string) Daemon
}

// Run answers, and returns the exit code.
func (p Plugin) Run(ctx context.Context) int {
	command := p.Getenv("CNI_COMMAND")
	if command == "" {
		fmt.Fprintf(p.Stderr, "%s %s: container runtimes run this, by the configuration in /etc/cni/net.d. Try: weft help\n",
			filepath.Base(p.Program), p.Build)
		fmt.Fprintf(p.Stderr, "CNI versions: %s\n", strings.Join(supported, ", "))
		return 0
	}
	var out bytes.Buffer
	spoken, err := p.answer(ctx, command, &out)
	code := 0
	if err != nil {
		out.Reset()
		b, _ := json.Marshal(explain(command, spoken, err)) // it holds strings and a number
		out.Write(append(b, '\n'))
		code = 1
	}
	// A runtime that does not read has hung up; it will come again with DEL.
	if _, err := p.Stdout.Write(out.Bytes()); err != nil {
		return 1
	}
	return code
}

// verb is one command of the specification.
type verb struct {
	since  string // the version that brought it
	names  bool   // is about one attachment: container and interface are named
	limit  time.Duration
	device func(context.Context, call, io.Writer) error // as weft-cni
	lend   func(context.Context, call, io.Writer) error // as weft-ipam
}

func verbs() map[string]verb {
	return map[string]verb{
		"ADD":    {"", true, changeTime, add, lend},
		"DEL":    {"", true, changeTime, del, del},
		"CHECK":  {"0.4.0", true, readTime, check, checkLent},
		"GC":     {"1.1.0", false, changeTime, collect, collect},
		"STATUS": {"1.1.0", false, readTime, status, status},
	}
}

// answer writes the result. spoken is the version that the runtime speaks.
func (p Plugin) answer(ctx context.Context, command string, out io.Writer) (spoken string, err error) {
	newest := supported[len(supported)-1]
	if command == "VERSION" {
		return newest, version.PluginSupports(supported...).Encode(out)
	}
	v, ok := verbs()[command]
	if !ok {
		return newest, refuse(codeEnvironment, fmt.Sprintf("there is no command %q", command), "CNI_COMMAND is one of ADD, DEL, CHECK, GC, STATUS, VERSION")
	}
	input, err := p.read(ctx)
	if err != nil {
		return newest, err
	}
	c := call{stderr: p.Stderr}
	if c.conf, err = parseConfig(input); err != nil {
		return newest, err
	}
	spoken = c.conf.CNIVersion
	if !slices.Contains(supported, spoken) {
		return newest, refuse(codeVersion, fmt.Sprintf("weft does not speak CNI %s", spoken), "it speaks "+strings.Join(supported, ", "))
	}
	if v.since != "" {
		if has, err := version.GreaterThanOrEqualTo(spoken, v.since); err != nil || !has {
			return spoken, refuse(codeVersion, fmt.Sprintf("%s is not in CNI %s", command, spoken), "it came with "+v.since)
		}
	}
	if v.names {
		if c, err = c.named(p.Getenv, command != "DEL"); err != nil {
			return spoken, err
		}
	}
	do, socket := v.device, c.conf.Socket
	if p.lends(c.conf) {
		do, socket = v.lend, cmp.Or(c.conf.IPAM.Socket, socket)
	}
	c.daemon = p.Dial(cmp.Or(socket, DefaultSocket))
	ctx, cancel := context.WithTimeout(ctx, v.limit)
	defer cancel()
	return spoken, do(ctx, c, out)
}

// DefaultSocket is where a daemon listens that was not told otherwise.
const DefaultSocket = "/run/weft/weft.sock"

// lends reports whether a main plugin asks for addresses only: by the name that it calls, also where somebody installed
// weft-cni alone and wrote that name.
func (p Plugin) lends(c config) bool {
	name := filepath.Base(p.Program)
	return name == NameIPAM || c.IPAM.Type == name && c.Type != name
}

// read takes the configuration. A runtime that neither writes nor hangs up is not waited for.
func (p Plugin) read(ctx context.Context) ([]byte, error) {
	type input struct {
		b   []byte
		err error
	}
	came := make(chan input, 1)
	go func() { // ends with the program, at the latest
		b, err := io.ReadAll(io.LimitReader(p.Stdin, maxInput+1))
		came <- input{b, err}
	}()
	ctx, cancel := context.WithTimeout(ctx, stdinTime)
	defer cancel()
	select {
	case <-ctx.Done():
		return nil, refuse(codeIO, "the configuration on stdin did not end", fmt.Sprintf("waited %v", stdinTime))
	case in := <-came:
		switch {
		case in.err != nil:
			return nil, refuse(codeIO, "the configuration on stdin did not arrive whole", in.err.Error())
		case len(in.b) > maxInput:
			return nil, refuse(codeDecode, fmt.Sprintf("the configuration on stdin is larger than %d bytes", maxInput), "")
		case len(bytes.TrimSpace(in.b)) == 0:
			return nil, refuse(codeDecode, "there is no configuration on stdin", "")
		}
		return in.b, nil
	}
}

// isCode reports whether an error of the daemon is of that kind.
func isCode(err error, codes ...control.Code) bool {
	return slices.ContainsFunc(codes, func(c control.Code) bool { return errors.Is(err, c) })
}
