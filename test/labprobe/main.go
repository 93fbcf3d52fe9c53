// Labprobe is what tests and the demo run inside hosts and pods to see whether packets pass: ping, flood, a web page, TCP
// throughput. It is one static program, so a bare machine needs nothing installed. It knows nothing of weft.
//
// Every subcommand prints its result on stdout as one line (with -json as one object) and exits 0 when all went well, 1
// when packets were lost or the other side did not answer, 2 when it was called wrongly.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
)

// errLost means that the command worked and its answer is no.
var errLost = errors.New("not all came back")

type command struct {
	name, args, about string
	run               func(ctx context.Context, fs *flag.FlagSet, args []string) (fmt.Stringer, error)
}

func commands() []command {
	return []command{
		{"ping", "[-c N] [-i PAUSE] [-w WAIT] [-s SIZE] [-from ADDR] ADDR…", "ICMP echo to one or more addresses", ping},
		{"flood", "[-rate N] [-for D] [-proto udp|icmp] ADDR[:PORT]", "numbered packets at a steady rate, reports gaps", flood},
		{"rain", "[-rate N] [-for D] [-first HEX] [-file F] [-syn] [-from PREFIX] ADDR:PORT", "UDP or SYNs from nowhere, as an attacker sends them", rain},
		{"serve", "[-http PORT] [-tcp PORT] [-udp PORT] [-page TEXT]", "a web page, a TCP sink, a UDP echo; until killed", serve},
		{"get", "[-w WAIT] URL…", "fetch pages", get},
		{"stream", "[-for D] [-P N] ADDR:PORT", "TCP throughput to a sink", stream},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	for _, c := range commands() {
		if len(args) == 0 || args[0] != c.name {
			continue
		}
		fs := flag.NewFlagSet(c.name, flag.ContinueOnError)
		fs.SetOutput(stderr)
		fs.Usage = func() {
			_, _ = fmt.Fprintf(stderr, "usage: labprobe %s %s\n%s\n", c.name, c.args, c.about)
			fs.PrintDefaults()
		}
		asJSON := fs.Bool("json", false, "print one JSON object")
		result, err := c.run(ctx, fs, args[1:])
		if result != nil {
			if *asJSON {
				_ = json.NewEncoder(stdout).Encode(result)
			} else {
				_, _ = fmt.Fprintln(stdout, result)
			}
		}
		switch {
		case err == nil:
			return 0
		case errors.Is(err, flag.ErrHelp):
			return 2
		case errors.As(err, new(usageError)):
			_, _ = fmt.Fprintf(stderr, "labprobe %s: %v\n", c.name, err)
			fs.Usage()
			return 2
		default:
			_, _ = fmt.Fprintf(stderr, "labprobe %s: %v\n", c.name, err)
			return 1
		}
	}
	_, _ = fmt.Fprintln(stderr, "usage: labprobe COMMAND …")
	for _, c := range commands() {
		_, _ = fmt.Fprintf(stderr, "  %-7s %s\n", c.name, c.about)
	}
	return 2
}

type usageError string

func (e usageError) Error() string { return string(e) }

func parseFlags(fs *flag.FlagSet, args []string, least int) error {
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return flag.ErrHelp // the flag package has said what is wrong
	}
	if fs.NArg() < least {
		return usageError("an argument is missing")
	}
	return nil
}

func parseAddrs(args []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, s := range args {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, usageError(err.Error())
		}
		out = append(out, a.Unmap())
	}
	return out, nil
}
