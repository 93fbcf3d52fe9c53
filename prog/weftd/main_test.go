package weftd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/prog/control"
	"weft/prog/wire"
)

// TestMain makes the test binary the daemon, or its wire, when it is started as one: a machine of a test is a network
// namespace, and a process is in one as a whole.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "wire":
		if err := wire.Main(context.Background(), wire.ServerOptions{Socket: os.Args[2], Version: "test"}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case len(os.Args) > 1 && os.Args[1] == "up":
		os.Exit(up(os.Args[2:]))
	case len(os.Args) == 3 && os.Args[1] == "write":
		fmt.Fprintln(os.Stderr, writeForever(os.Args[2]))
		os.Exit(1)
	case len(os.Args) == 4 && os.Args[1] == "hold":
		os.Exit(hold(os.Args[2], os.Args[3]))
	}
	goleak.VerifyTestMain(m)
}

// up is `weft up` with settings as key=value. It prints what the command line would, and fails when Run left goroutines.
func up(settings []string) int {
	cfg := Config{
		Build: "test", Stdin: os.Stdin,
		Log:       slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Founded:   func(r control.InitReply) { fmt.Fprintln(os.Stdout, "founded", r.Token, strings.Join(r.Notes, " ")) },
		Addressed: func(r control.TokenReply) { fmt.Fprintln(os.Stdout, "addressed", r.Token) },
	}
	if err := errors.Join(disable(os.Getenv("WITHOUT")), stray(os.Getenv("STRAY"))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	known := Settings()
	for _, s := range settings {
		key, value, _ := strings.Cut(s, "=")
		i := slices.IndexFunc(known, func(s Setting) bool { return s.Key == key })
		if err := known[i].Set(&cfg, value); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
	}
	cfg, err := cfg.Complete()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	err = Run(ctx, cfg)
	stop()
	// A probe of memberlist that is under way when it is shut down ends by its own time, 8 s at most.
	leak := goleak.Find()
	for end := time.Now().Add(time.Minute); leak != nil && time.Now().Before(end); {
		leak = goleak.Find() // waits a second itself
	}
	if leak != nil {
		fmt.Fprintln(os.Stderr, leak)
		return 9
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "weft: "+control.Explain(err).Error())
		return 1
	}
	return 0
}

// hold keeps a port until it is ended.
func hold(network, address string) int {
	var held io.Closer
	var err error
	if network == "udp" {
		held, err = net.ListenPacket(network, address)
	} else {
		held, err = net.Listen(network, address)
	}
	if err != nil {
		fmt.Fprintln(os.Stdout, err)
		return 1
	}
	fmt.Fprintln(os.Stdout, "holds")
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM) // where nothing can happen Go sees a deadlock
	defer stop()
	<-ctx.Done()
	_ = held.Close()
	return 0
}

// must is for calls that a test does not expect to fail: must(f())(t).
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
