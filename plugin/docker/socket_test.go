package docker_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/plugin/docker"
)

// serving runs a plugin on a socket; stop ends it and waits.
func serving(t *testing.T, path string) (stop func()) {
	t.Helper()
	p, err := docker.New(docker.Config{Node: newMachine(), Store: &shelf{}, Socket: path})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	return stop
}

// activate is the first call of dockerd, again until it is answered.
func activate(t *testing.T, path string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://weft/Plugin.Activate", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err == nil {
			text, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(text) != `{"Implements":["NetworkDriver","IpamDriver"]}` {
				t.Fatalf("answers %q, %v", text, err)
			}
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func gone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func TestTheSocketIsThereAsLongAsTheDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plugins", "weft.sock")
	stop := serving(t, path)
	activate(t, path)
	st, err := os.Lstat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	stop()
	if !gone(path) || !gone(filepath.Dir(path)) {
		t.Error("the socket or its folder is still there")
	}
}

func TestASocketThatAKilledDaemonLeftIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weft.sock")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	stop := serving(t, path)
	activate(t, path)
	stop()
	if !gone(path) {
		t.Error("the socket is still there")
	}
}

func TestAnothersSocketAndAFileAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	other, err := net.Listen("unix", filepath.Join(dir, "other.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	file := filepath.Join(dir, "file.sock")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, words := range map[string]string{other.Addr().String(): "another program listens", file: "no socket"} {
		if err := docker.Listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", path, err)
		}
		stop := serving(t, path)
		stop()
		if gone(path) {
			t.Errorf("%s is gone", path)
		}
	}
}

func TestASocketThatWasRemovedComesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weft.sock")
	stop := serving(t, path)
	defer stop()
	activate(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	activate(t, path)
}
