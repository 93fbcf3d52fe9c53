// Command weft is what people type: it runs the daemon and asks it. Each command parses its words, asks, and renders;
// what the commands mean is in prog/weftd, the data plane in prog/wire, the questions in prog/control.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second ^C kills
	code := realApp().run(ctx, os.Args)
	stop()
	os.Exit(code)
}

func realApp() *app {
	return &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, lookup: os.LookupEnv, netns: "/run/netns",
		capable: capable, entries: programs(), terminal: func() (int, bool) {
			columns, _, err := term.GetSize(int(os.Stdout.Fd()))
			return columns, err == nil
		}}
}
