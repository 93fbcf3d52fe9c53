package controltest

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"

	"weft/prog/control"
)

// Serve serves b at path until it is stopped, by a request or by the returned function, which waits for the end. The
// socket answers when Serve returns.
func Serve(path string, b *Backend) (stop func() error, err error) {
	s, err := control.Listen(control.Config{Path: path, Backend: b})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var (
		serving sync.WaitGroup
		result  error
	)
	serving.Go(func() {
		select {
		case <-b.Stopped():
			cancel()
		case <-ctx.Done():
		}
	})
	serving.Go(func() {
		defer cancel()
		result = errors.Join(s.Serve(ctx), s.Close())
	})
	return func() error {
		cancel()
		serving.Wait()
		return result
	}, nil
}

// Start is Serve for a test, at a path of its own.
func Start(t testing.TB, b *Backend) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "weft") //nolint:usetesting // t.TempDir holds the test's name: too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path = dir + "/weft.sock"
	stop, err := Serve(path, b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return path
}
