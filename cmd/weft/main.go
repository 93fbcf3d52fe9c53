// Command weft is what people type: it runs the daemon and asks it. Each command parses its words, asks, and renders;
// what the commands mean is in prog/weftd, the data plane in prog/wire, the questions in prog/control.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second ^C kills
	code := realApp().run(ctx, os.Args)
	stop()
	os.Exit(code)
}
