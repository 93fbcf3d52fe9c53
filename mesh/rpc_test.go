package mesh_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh"
	"weft/mesh/peer"
)

func TestCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(2)
		w.settle(5 * time.Second)
		a, b := w.nodes[0], w.nodes[1]
		refusal := &mesh.Fault{Code: "full", Text: "No peer can lend: 1 full."}
		b.mesh.Handle("refuse", func(context.Context, peer.ID, []byte) ([]byte, error) {
			return nil, errors.Join(errors.New("inner"), refusal)
		})
		b.mesh.Handle("fail", func(context.Context, peer.ID, []byte) ([]byte, error) { return nil, errors.New("no such atom") })
		b.mesh.Handle("panic", func(context.Context, peer.ID, []byte) ([]byte, error) { panic("oops") })
		b.mesh.Handle("hang", func(ctx context.Context, _ peer.ID, _ []byte) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		b.mesh.Handle("big", func(context.Context, peer.ID, []byte) ([]byte, error) { return make([]byte, mesh.MaxMessage+1), nil })
		b.mesh.Handle("huge", func(context.Context, peer.ID, []byte) ([]byte, error) { return make([]byte, mesh.MaxSnapshot+1), nil })
		b.mesh.Handle("long error", func(context.Context, peer.ID, []byte) ([]byte, error) {
			return nil, errors.New(strings.Repeat("ü", 5000))
		})

		code := func(method string, req []byte, want string) {
			t.Helper()
			_, err := a.mesh.Call(t.Context(), b.id(), method, req)
			if !mesh.HasCode(err, want) {
				t.Errorf("%s: got %v, want code %q", method, err, want)
			}
		}
		got, err := a.mesh.Call(t.Context(), b.id(), "echo", []byte("hello"))
		if want := a.id().Short() + " hello"; err != nil || string(got) != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
		full := make([]byte, mesh.MaxMessage-9)
		if got, err := a.mesh.Call(t.Context(), b.id(), "echo", full); err != nil || !bytes.HasSuffix(got, full) {
			t.Errorf("the largest message: %d bytes, %v", len(got), err)
		}
		code("refuse", nil, "full")
		code("fail", nil, mesh.CodeFailed)
		code("panic", nil, mesh.CodeFailed)
		code("unheard", nil, mesh.CodeUnknown)
		code("big", nil, mesh.CodeTooBig)
		code("huge", nil, mesh.CodeTooBig)
		code("long error", nil, mesh.CodeFailed)
		code("echo", make([]byte, mesh.MaxMessage+1), mesh.CodeTooBig)
		if n := b.mesh.Stats().Panics; n != 1 {
			t.Errorf("%d panics counted, want 1", n)
		}
		var f *mesh.Fault
		if _, err := a.mesh.Call(t.Context(), b.id(), "refuse", nil); !errors.As(err, &f) || f.Text != refusal.Text {
			t.Errorf("the sentence came as %v", err)
		}

		start := time.Now()
		if _, err := a.mesh.Call(t.Context(), b.id(), "hang", nil); err == nil || time.Since(start) > 11*time.Second {
			t.Errorf("a call without deadline: %v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		if _, err := a.mesh.Call(ctx, b.id(), "hang", nil); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > time.Second {
			t.Errorf("a call of a second: %v after %v", err, time.Since(start))
		}
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		start = time.Now()
		if _, err := a.mesh.Call(ctx, b.id(), "hang", nil); !errors.Is(err, context.Canceled) || time.Since(start) > time.Second {
			t.Errorf("a cancelled call: %v after %v", err, time.Since(start))
		}
		if _, err := a.mesh.Call(t.Context(), a.id(), "echo", nil); err == nil {
			t.Error("a node called itself")
		}
		w.net.Split(w.ids(w.nodes[:1]), w.ids(w.nodes[1:]))
		start = time.Now()
		if _, err := a.mesh.Call(t.Context(), b.id(), "echo", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a call over a cut: %v after %v", err, time.Since(start))
		}
	})
}

func TestCallsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(3)
		w.settle(5 * time.Second)
		a, b := w.nodes[0], w.nodes[1]
		var mu sync.Mutex
		now, most := 0, 0
		b.mesh.Handle("slow", func(_ context.Context, _ peer.ID, _ []byte) ([]byte, error) {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			now--
			mu.Unlock()
			return nil, nil
		})
		var wg sync.WaitGroup
		var ok, busy, other int
		for range 40 {
			wg.Go(func() {
				_, err := a.mesh.Call(t.Context(), b.id(), "slow", nil)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					ok++
				case mesh.HasCode(err, mesh.CodeBusy):
					busy++
				default:
					other++
				}
			})
		}
		time.Sleep(500 * time.Millisecond)
		// One that asks too much does not keep others out.
		if _, err := w.nodes[2].mesh.Call(t.Context(), b.id(), "echo", nil); err != nil {
			t.Errorf("a third node: %v", err)
		}
		wg.Wait()
		if most != 16 || ok != 16 || busy != 24 || other != 0 {
			t.Errorf("at most %d at once, %d answered, %d told to wait, %d failed", most, ok, busy, other)
		}
	})
}

// What arrives on a stream may be anything.
func TestBadRequestsAreAnsweredOrDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(2)
		w.settle(5 * time.Second)
		a, b := w.nodes[0], w.nodes[1]
		for _, c := range []struct {
			name, send string
			answered   bool
		}{
			{"nothing", "", false},
			{"a newer format", "\x20\x04echo\x00\x00\x00\x00\x00\x00\x00\x00", true},
			{"a newer minor", "\x1f\x04echo\x00\x00\x10\x00\x00\x00\x00\x00", true},
			{"no method", "\x10\x00", true},
			{"too large", "\x10\x04echo\x00\x00\x10\x00\xff\xff\xff\xff", true},
			{"cut off", "\x10\x04echo\x00\x00\x10\x00\x00\x00\x00\x05abc", false},
		} {
			conn, err := a.port.Dial(t.Context(), b.id(), mesh.StreamCall)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, c.send); err != nil {
				t.Fatal(err)
			}
			conn.SetReadDeadline(time.Now().Add(30 * time.Second))
			start := time.Now()
			answer, err := io.ReadAll(conn)
			if (len(answer) > 0) != c.answered || err != nil {
				t.Errorf("%s: answer %q, %v", c.name, answer, err)
			}
			if took := time.Since(start); took > 11*time.Second {
				t.Errorf("%s: held for %v", c.name, took)
			}
			conn.Close()
		}
		var unknown net.Conn
		unknown, err := a.port.Dial(t.Context(), b.id(), 'z')
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unknown.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("a stream of unknown kind: %v", err)
		}
		if b.mesh.Stats().Unknown == 0 {
			t.Error("it was not counted")
		}
		unknown.Close()
	})
}
